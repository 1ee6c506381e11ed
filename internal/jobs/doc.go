// Package jobs runs commands as jobs that are checkpointed on schedule and brought back when they, the daemon or the machine crash.
//
// A [Manager] holds all jobs of a machine. Next to each job works a shim (package shim), a small process that has the job's terminal
// and outlives the manager: closing the manager, or killing the daemon it lives in, touches no job, and the next manager takes the jobs
// up again.
//
// Words: a job is *alive* while it has a process. An *operation* on a job is a dump, a start, a restore or an end on request; a job has one
// at a time, and whoever wants another waits, but for the schedule, which skips the checkpoint and says so. A checkpoint's *number*
// counts a job's checkpoints from 1 and is never used again; the newest *good* one is the newest that no restore has failed on.
//
// What is known stands in a database (package db) and, so that it can be made anew, beside the checkpoints:
//
//	CHECKPOINTS/jobs/NAME/job.json         the job
//	CHECKPOINTS/jobs/NAME/000012/          checkpoint 12
//	CHECKPOINTS/jobs/NAME/000012.json      what Stasis knows of it beside its manifest
//	CHECKPOINTS/jobs/NAME/000012.files/    files that were kept with it
//	CHECKPOINTS/users/UID/jobs/NAME/…      the same for jobs of other users than root
//	JOBS/NAME/                             the shim's folder: log, socket, state
//
// All methods of a Manager may be called from several goroutines at once.
package jobs
