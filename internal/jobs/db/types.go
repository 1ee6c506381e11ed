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

// Keep says which checkpoints of a job are kept: those that any of the rules keeps. The newest one always is; the zero value keeps all.
type Keep struct {
	Last    int   `json:"last,omitempty"`   // that many newest ones
	Hourly  int   `json:"hourly,omitempty"` // the newest of each of the last so many hours that have one
	Daily   int   `json:"daily,omitempty"`
	Weekly  int   `json:"weekly,omitempty"`
	Monthly int   `json:"monthly,omitempty"`
	Bytes   int64 `json:"bytes,omitempty"` // the oldest go until all together take at most so many
}

// Settings says how a job is dumped; the fields are those of stasis.DumpOptions.
type Settings struct {
	Streams     int           `json:"streams,omitempty"`
	Compression string        `json:"compression,omitempty"`
	Level       int           `json:"level,omitempty"`
	Engine      string        `json:"engine,omitempty"`
	MaxRounds   int           `json:"max_rounds,omitempty"`
	MaxPause    time.Duration `json:"max_pause_ns,omitempty"`
	FinalBuffer int           `json:"final_buffer,omitempty"`
	Nice        int           `json:"nice,omitempty"`
	Bandwidth   int64         `json:"bandwidth,omitempty"`
	MaxChain    int           `json:"max_chain,omitempty"`
	CRIU        criu.Options  `json:"criu,omitzero"`
}

// Spec is what the user said about a job.
type Spec struct {
	Name   string            `json:"name"`
	Argv   []string          `json:"argv,omitempty"` // of a process that was taken over: what it was started with
	Env    []string          `json:"env,omitempty"`
	Dir    string            `json:"dir,omitempty"`
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Labels map[string]string `json:"labels,omitempty"`

	Every time.Duration `json:"every_ns,omitempty"` // distance of two checkpoints; 0: none on schedule, unless Cron has one
	Cron  string        `json:"cron,omitempty"`
	Keep  Keep          `json:"keep,omitzero"`

	Restart      Restart       `json:"restart"`
	MaxRetries   int           `json:"max_retries,omitempty"`      // attempts in a row; 0: the manager's default
	RestartDelay time.Duration `json:"restart_delay_ns,omitempty"` // before the second attempt in a row, doubles with each; 0: the manager's default
	FromScratch  bool          `json:"from_scratch,omitempty"`     // start anew where there are checkpoints but none is good

	WithFiles []string `json:"with_files,omitempty"` // absolute paths that are kept with each checkpoint
	Terminal  bool     `json:"terminal"`             // a terminal of its own; else its output goes through a pipe
	Rows      uint16   `json:"rows,omitempty"`       // first size of that terminal
	Cols      uint16   `json:"cols,omitempty"`
	Settings  Settings `json:"settings,omitzero"`
}

// State is what a job does.
type State string

// The states of a job.
const (
	StateStarting  State = "starting"
	StateRunning   State = "running"
	StateRestoring State = "restoring"
	StateBackoff   State = "backoff"   // waits for its next attempt to be brought back
	StateDone      State = "done"      // ended by itself with exit code 0
	StateFailed    State = "failed"    // any other end, and not brought back
	StateKilled    State = "killed"    // ended on request
	StateSuspended State = "suspended" // ended by a dump, whose checkpoint has all of it
)

// Exit is how a job ended.
type Exit struct {
	Code   int       `json:"code"`             // -1: by a signal, or unknown
	Signal string    `json:"signal,omitempty"` // such as SIGKILL
	Lost   bool      `json:"lost,omitempty"`   // nobody was there to see: the machine, or all of Stasis, went down
	At     time.Time `json:"at"`
}

// Clean says whether a run is known to have ended with exit code 0.
func (e *Exit) Clean() bool { return e != nil && e.Code == 0 && e.Signal == "" && !e.Lost }

// Job is a job as it stands.
type Job struct {
	ID       string    `json:"id"` // 16 hex digits
	Spec     Spec      `json:"spec"`
	Owner    uint32    `json:"owner"` // user to whom it belongs
	State    State     `json:"state"`
	PID      int       `json:"pid,omitempty"`     // of its first process
	Start    uint64    `json:"start,omitempty"`   // its start time, clock ticks since boot: with PID it names a process for good
	Boot     string    `json:"boot,omitempty"`    // id of the machine's run in which PID and Start mean something
	Managed  bool      `json:"managed,omitempty"` // was taken up while it ran: until it is restored it has no log and no terminal here
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"` // or restored
	Restores int       `json:"restores,omitempty"`
	Failures int       `json:"failures,omitempty"` // attempts in a row that came to nothing
	Exit     *Exit     `json:"exit,omitempty"`
	Parent   uint64    `json:"parent,omitempty"`  // checkpoint on which the next one builds; 0: none
	LastSeq  uint64    `json:"last_seq"`          // newest number that a checkpoint of it ever had
	Message  string    `json:"message,omitempty"` // what people should know
}

// Checkpoint is one of a job's checkpoints.
type Checkpoint struct {
	Job        string        `json:"job"`
	Seq        uint64        `json:"seq"`
	ID         string        `json:"id"` // of its manifest
	Parent     string        `json:"parent,omitempty"`
	Dir        string        `json:"dir"`
	Created    time.Time     `json:"created"`
	PauseUS    int64         `json:"pause_us"`
	Took       time.Duration `json:"took_ns,omitempty"`
	Bytes      int64         `json:"bytes"`        // stored
	Memory     int64         `json:"bytes_memory"` // of the tree
	Referenced int64         `json:"bytes_referenced,omitempty"`
	Reason     string        `json:"reason"` // schedule, request, stop, evacuation
	RootPID    int           `json:"root_pid"`

	ConsoleFlags int      `json:"console_flags,omitempty"` // open(2) flags of its terminal
	Files        []string `json:"files,omitempty"`         // paths that were kept with it
	Bad          string   `json:"bad,omitempty"`           // why it could not be restored
}

// Event is something that happened to a job, or to all of them.
type Event struct {
	Seq        uint64    `json:"seq"`
	At         time.Time `json:"at"`
	Job        string    `json:"job,omitempty"`
	JobID      string    `json:"job_id,omitempty"`
	Owner      uint32    `json:"owner,omitempty"` // of the job
	Kind       string    `json:"kind"`
	Text       string    `json:"text"`
	Checkpoint uint64    `json:"checkpoint,omitempty"`
	Exit       *Exit     `json:"exit,omitempty"`
}
