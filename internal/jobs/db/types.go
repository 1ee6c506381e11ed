package db

import (
	"time"

	"stasis/internal/criu"
)

// Restart says when a job that has ended is brought back.
type Restart string

// The restart policies.
const (
	RestartNever     Restart = "never"
	RestartOnFailure Restart = "on-failure" // unless it ended with exit code 0
	RestartAlways    Restart = "always"     // after exit code 0 from its beginning
)

// Keep says which checkpoints of a job are kept. The newest one always is; the zero value keeps all.
type Keep struct {
	Last   int   `json:"last,omitempty"`   // that many newest ones
	Hourly int   `json:"hourly,omitempty"` // the newest of each of that many hours that have one
	Daily  int   `json:"daily,omitempty"`
	Bytes  int64 `json:"bytes,omitempty"` // no more than so many bytes of all checkpoints of the job together
}

// Spec is what the user said about a job.
type Spec struct {
	Name string   `json:"name"`
	Argv []string `json:"argv,omitempty"` // empty: a process that was taken over and cannot be started anew
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	UID  uint32   `json:"uid"`
	GID  uint32   `json:"gid"`

	Every time.Duration `json:"every_ns,omitempty"` // distance of two checkpoints; 0: none on schedule, unless Cron has one
	Cron  string        `json:"cron,omitempty"`
	Keep  Keep          `json:"keep,omitzero"`

	Restart   Restart  `json:"restart"`
	WithFiles []string `json:"with_files,omitempty"` // paths that are kept with each checkpoint
	Terminal  bool     `json:"terminal"`             // a terminal of its own; else its output goes through a pipe

	Compression string       `json:"compression,omitempty"` // "": the default
	Streams     int          `json:"streams,omitempty"`     // 0: the default
	CRIU        criu.Options `json:"criu,omitzero"`
}

// State is what a job does.
type State string

// The states of a job.
const (
	StateStarting  State = "starting"
	StateRunning   State = "running"
	StateRestoring State = "restoring"
	StateWaiting   State = "waiting" // for its next restart
	StateEnded     State = "ended"   // with exit code 0
	StateFailed    State = "failed"  // any other end
	StateStopped   State = "stopped" // ended on request
)

// Alive says whether there is a process to dump.
func (s State) Alive() bool { return s == StateRunning }

// Exit is how a job ended.
type Exit struct {
	Code   int       `json:"code"`             // -1: by a signal, or unknown
	Signal string    `json:"signal,omitempty"` // such as SIGKILL
	Lost   bool      `json:"lost,omitempty"`   // nobody was there to see: the machine, or all of Stasis, went down
	At     time.Time `json:"at"`
}

// Job is a job as it stands.
type Job struct {
	Spec     Spec      `json:"spec"`
	State    State     `json:"state"`
	PID      int       `json:"pid,omitempty"`     // of its first process
	StartNS  uint64    `json:"start,omitempty"`   // its start time, clock ticks since boot: with PID it names a process for good
	Adopted  bool      `json:"adopted,omitempty"` // runs under somebody else's hand: no log, no terminal
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"` // or restored
	Restarts int       `json:"restarts,omitempty"`
	Exit     *Exit     `json:"exit,omitempty"`
	Parent   uint64    `json:"parent,omitempty"`  // checkpoint on which the next one builds
	LastSeq  uint64    `json:"last_seq"`          // newest number that a checkpoint of it ever had
	Problem  string    `json:"problem,omitempty"` // why it is not as it should be
}

// Checkpoint is one of a job's checkpoints.
type Checkpoint struct {
	Job     string    `json:"job"`
	Seq     uint64    `json:"seq"`
	ID      string    `json:"id"` // of its manifest
	Parent  string    `json:"parent,omitempty"`
	Dir     string    `json:"dir"`
	Created time.Time `json:"created"`
	PauseUS int64     `json:"pause_us"`
	Bytes   int64     `json:"bytes"`        // stored
	Memory  int64     `json:"bytes_memory"` // of the tree
	Changed int64     `json:"bytes_changed,omitempty"`
	Reason  string    `json:"reason"` // schedule, request, shutdown, evacuation
	RootPID int       `json:"root_pid"`

	ConsoleFlags int      `json:"console_flags,omitempty"` // open(2) flags of its terminal or pipe
	Files        []string `json:"files,omitempty"`         // paths that were kept with it
	Bad          string   `json:"bad,omitempty"`           // why it could not be restored
}

// Event is something that happened to a job, or to all of them.
type Event struct {
	Seq        uint64    `json:"seq"`
	At         time.Time `json:"at"`
	Job        string    `json:"job,omitempty"`
	Kind       string    `json:"kind"`
	Text       string    `json:"text"`
	Checkpoint uint64    `json:"checkpoint,omitempty"`
}
