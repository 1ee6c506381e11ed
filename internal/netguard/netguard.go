// Package netguard sees to it that a dump never leaves its processes without a
// network, whatever becomes of Stasis.
//
// During a dump CRIU locks the connections of the tree. When Stasis is killed,
// CRIU undoes that; when CRIU is killed, Stasis does. The guard is for the case
// that both are killed: a small process that waits for the end of Stasis, then
// for the end of CRIU, and, if the tree still lives, undoes what is left.
//
// The guard is this executable once more: /proc/self/exe with the name
// stasis-unlock, which this package's init notices before main runs. It has a
// session of its own and ignores the signals that a terminal sends.
//
// A Guard belongs to one goroutine.
package netguard

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/proc"
)

const (
	// processName is the guard's argv[0], and how init knows it.
	processName = "stasis-unlock"
	// pipeFD is the guard's end of the pipe.
	pipeFD = 3

	// criuPause is how long to wait before looking again whether CRIU has ended.
	criuPause = 10 * time.Millisecond
)

// Watch says what is watched.
type Watch struct {
	CRIU    int          `json:"criu"` // its pid
	Root    int          `json:"root"` // of the tree
	Remains criu.Remains `json:"remains"`
}

// assignment is a Watch with what tells its processes from later ones of the same
// number.
type assignment struct {
	Watch
	CRIUStart uint64 `json:"criu_start"`
	RootStart uint64 `json:"root_start"`
}

// Guard is a guard process, seen from Stasis.
type Guard struct {
	cmd  *exec.Cmd
	pipe *os.File
}

// Start starts a guard. It must be ended by Disarm.
func Start(w Watch) (*Guard, error) {
	a := assignment{Watch: w}
	for pid, start := range map[int]*uint64{w.CRIU: &a.CRIUStart, w.Root: &a.RootStart} {
		task, err := proc.ReadTask(pid)
		if err != nil {
			return nil, fmt.Errorf("cannot guard the network of the tree: %w", err)
		}
		*start = task.StartTime
	}
	text, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("cannot guard the network of the tree: %w", err)
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the guard: %w", err)
	}
	defer theirs.Close()
	g := &Guard{pipe: ours, cmd: &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{processName},
		Env:         []string{"GOMAXPROCS=1", "PATH=" + os.Getenv("PATH")},
		Dir:         "/", // it keeps no file system busy
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}}
	if err := g.cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("cannot start the guard, which is this program once more: %w", err)
	}
	if _, err := ours.Write(append(text, '\n')); err != nil {
		g.Disarm()
		return nil, fmt.Errorf("cannot tell the guard what to guard: %w", err)
	}
	return g, nil
}

// disarmed is the last byte of the good end.
const disarmed = '.'

// Disarm ends the guard and leaves everything as it is.
func (g *Guard) Disarm() {
	_, _ = g.pipe.Write([]byte{disarmed}) // one that is gone guards nothing
	g.pipe.Close()
	_ = g.cmd.Wait()
}

// init turns this process into the guard if that is what it was started for.
func init() {
	if len(os.Args) != 1 || os.Args[0] != processName || !isPipe(pipeFD) {
		return
	}
	unix.CloseOnExec(pipeFD)
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	told, err := io.ReadAll(os.NewFile(pipeFD, "stasis"))
	if n := len(told); err == nil && n > 0 && told[n-1] != disarmed {
		var a assignment
		if err := json.Unmarshal(told, &a); err == nil {
			_ = a.undo() // nobody is left who could be told
		}
	}
	os.Exit(0)
}

func isPipe(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// undo undoes what CRIU has left, when it has ended. One that ends by itself has
// left nothing. A tree that has ended leaves the lock to its restore.
func (a *assignment) undo() error {
	for runs(a.CRIU, a.CRIUStart) {
		time.Sleep(criuPause)
	}
	if !runs(a.Root, a.RootStart) {
		return nil
	}
	tree, err := proc.Tree(a.Root)
	if err != nil {
		return err
	}
	var pids []int
	for _, task := range tree {
		pids = append(pids, task.PID)
	}
	return a.Remains.Undo(pids)
}

// runs says whether the process that had a number still has it, and has not ended.
func runs(pid int, start uint64) bool {
	task, err := proc.ReadTask(pid)
	return err == nil && task.StartTime == start && !task.Zombie()
}
