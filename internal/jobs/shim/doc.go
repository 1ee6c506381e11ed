// Package shim is the small process that stands between a job and the daemon, so that the daemon can be killed and upgraded while
// the job runs on.
//
// A shim holds the other end of the job's terminal or pipe, writes what comes out of it to the log, lets people attach to it, is the
// parent of the job and so learns how it ended, and brings it back from a checkpoint. It decides nothing: what to start, what to
// restore and when is the daemon's matter, over a socket in the job's folder.
//
// The shim is this executable once more, with the name stasis-shim, which this package's init notices before main runs. It ignores
// the signals that end a daemon. It is the heir of the job's orphans, and ends what is left of the job's tree when its first process
// has ended.
//
// Words: a *run* is one life of the job, from a start or a restore to its end; runs of a shim are counted from 1. The *console* is the
// terminal or pipe of a run; its *key* is CRIU's name for it, under which a restore is given the console of the next run.
//
// The folder holds
//
//	shim.sock    the socket
//	state.json   Status, for when the shim is gone
//	log, log.1…  what the job has printed, the newest in log
//	shim.log     what the shim itself has to say: nothing, mostly
//
// The protocol is one JSON line from the caller, one JSON line back, on a connection of its own each. After "attach" frames follow in both
// directions: a byte for the kind, four bytes for the length (big endian), and so many bytes. An unknown member of a line is ignored
// and an unknown request is an error, so that an old shim can work for a newer daemon.
//
// A Client may be used by several goroutines at once.
package shim
