package shim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"stasis/internal/jobs/db"
)

// Names in a job's folder.
const (
	socketName = "shim.sock"
	stateName  = "state.json"
	shimLog    = "shim.log"
)

// protocolVersion is for daemons to come; they have to work with shims that run since before them.
const protocolVersion = 1

// What can be asked of a shim.
const (
	opStatus  = "status"
	opStart   = "start"
	opRestore = "restore"
	opSignal  = "signal"
	opWait    = "wait"
	opAttach  = "attach"
	opQuit    = "quit"
)

type request struct {
	Op      string   `json:"op"`
	Start   *Command `json:"start,omitempty"`
	Restore *Restore `json:"restore,omitempty"`
	Signal  int      `json:"signal,omitempty"`
	Tree    bool     `json:"tree,omitempty"` // all processes of the job, not the first alone
	Run     int      `json:"run,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Cols    uint16   `json:"cols,omitempty"`
}

type response struct {
	Status   *Status   `json:"status,omitempty"`
	Restored *Restored `json:"restored,omitempty"`
	Error    string    `json:"error,omitempty"`
	Damaged  bool      `json:"damaged,omitempty"` // the checkpoint is
}

// Command is what a run begins with.
type Command struct {
	Argv     []string `json:"argv"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir"`
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Terminal bool     `json:"terminal"`
	Rows     uint16   `json:"rows,omitempty"` // size of the terminal; 0: as it is
	Cols     uint16   `json:"cols,omitempty"`
}

// Restore is what a run comes back from.
type Restore struct {
	Dir          string `json:"dir"`           // of the checkpoint
	Terminal     bool   `json:"terminal"`      // kind of the console
	ConsoleFlags int    `json:"console_flags"` // open(2) flags of the console that CRIU does not keep
	CRIUPath     string `json:"criu_path,omitempty"`
	Force        bool   `json:"force,omitempty"`
	Track        bool   `json:"track,omitempty"` // keep track of what is written, for the next checkpoint
	Trace        bool   `json:"trace,omitempty"` // note how long each step takes
	// UID, if not 0, is the user, and GID the group, of a job that is not root's: the restored tree must have no more rights than they.
	UID uint32 `json:"uid,omitempty"`
	GID uint32 `json:"gid,omitempty"`
}

// Restored tells how a restore went.
type Restored struct {
	ToResume time.Duration `json:"to_resume_ns"`
	Took     time.Duration `json:"took_ns"`
	PIDs     []int         `json:"pids,omitempty"`
	Memory   int64         `json:"bytes_memory"`
	Warnings []string      `json:"warnings,omitempty"`
	Spans    []Span        `json:"spans,omitempty"` // where it was traced, also of a restore that failed
}

// Status is what a shim knows.
type Status struct {
	Protocol int      `json:"protocol"`
	Shim     int      `json:"shim"` // its own process id
	Run      int      `json:"run"`  // 0: none yet
	Running  bool     `json:"running"`
	Busy     bool     `json:"busy,omitempty"`  // a run is being begun: a command is started, or a checkpoint restored
	PID      int      `json:"pid,omitempty"`   // of the job's first process, also after its end
	Start    uint64   `json:"start,omitempty"` // its start time in clock ticks since boot
	Console  string   `json:"console,omitempty"`
	Exit     *db.Exit `json:"exit,omitempty"` // of the run, once it has ended
	At       string   `json:"at,omitempty"`   // boot id of the machine
}

// Errors of a Client.
var (
	ErrGone    = errors.New("the job's shim is gone")
	ErrDamaged = errors.New("the checkpoint is damaged")
)

// The kinds of frames.
const (
	frameData   = 'd' // input, or output
	frameResize = 'r' // rows and columns, two bytes each
)

const maxFrame = 64 << 10

func writeFrame(w io.Writer, kind byte, payload []byte) error {
	frame := make([]byte, 5, 5+len(payload))
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	_, err := w.Write(append(frame, payload...))
	return err
}

func readFrame(r io.Reader) (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes: at most %d are allowed", n, maxFrame)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return head[0], payload, err
}
