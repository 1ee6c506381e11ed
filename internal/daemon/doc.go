// Package daemon serves Stasis as an API on a Unix socket, and where configured on TCP with mutual TLS.
//
// Words: a call is one request with its answer, or its streams; a peer is who calls (package peer). What a peer may do is decided
// in two places: [Daemon] lets only allowed users call at all, and the services let everybody but root touch only what is their
// own. docs/threat-model.md says against what that holds.
//
// A request passes through, from the outside: the listener, which asks the kernel who it is and bounds connections; the guard of panics;
// the gate, which refuses users that are not allowed and bounds calls; deadlines for every write, so that a client that does not
// read holds nobody up; and the services, whose errors get their codes at the very edge (package wire).
//
// [New], [Daemon.Serve] and [Daemon.Stop] are called once each; Stop from any goroutine.
package daemon
