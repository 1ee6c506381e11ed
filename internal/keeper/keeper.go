// Package keeper keeps the trackers of a process tree alive between two
// commands: a pre-dump or a dump hands over its descriptors, and the next dump
// takes them up, so that it knows what was written meanwhile.
//
// A keeper is a small process, stasis-tracker, for one tree. It is this
// executable once more, which this package's init notices before main runs. It
// only holds descriptors; it touches the tree in no way. It ends with the root of
// the tree, when it is told to ([Stop]), and by SIGTERM. With it ends the
// tracking, and the kernel leaves nothing in the processes.
//
// What a keeper says is worth something only for the checkpoint that it names
// ([State.Armed]): everything that was written since. While a dump uses the
// trackers that name is empty ([Disarm]), so that a dump that fails halfway
// leaves no wrong answer behind.
//
// Keepers are found by their sockets in /run/stasis/trackers, a folder that only
// root may enter. A socket's name has the pid and the start time of the root, so
// that a later process with the same pid is nobody's.
package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// Folder has the sockets of all keepers.
const Folder = "/run/stasis/trackers"

// ErrNone: nobody keeps trackers of that tree.
var ErrNone = errors.New("no tracker is kept for the process")

// patience bounds each message, to a keeper and from one.
const patience = 2 * time.Second

// State is what a keeper knows. Its descriptors are beside it, one for each of
// Processes, in their order.
type State struct {
	Root  int    `json:"root"`  // pid of the tree's root
	Start uint64 `json:"start"` // when it started, clock ticks after boot
	Comm  string `json:"comm"`

	Armed   string    `json:"armed"` // id of the checkpoint since which writes are known; "": none
	Dir     string    `json:"dir"`   // where that checkpoint was written
	Since   time.Time `json:"since"` // when it was taken
	Tracker string    `json:"tracker"`

	Processes []Process `json:"processes"`
	Lost      []Lost    `json:"lost,omitempty"` // pages that the checkpoint lacks, though they may count as unchanged
}

// Process is one whose writes are tracked.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // as State.Start
}

// Lost is a range of pages of a process.
type Lost struct {
	PID   int    `json:"pid"`
	Begin uint64 `json:"begin"`
	End   uint64 `json:"end"`
}

// Info is a keeper as a listing shows it.
type Info struct {
	State
	Keeper int   // its own pid
	Memory int64 // bytes of RAM that it has to itself
	// Err says why the keeper did not answer; of State there are only Root, Start and Comm then, and Keeper may be 0.
	Err error `json:"-"`
}

func socketPath(root int, start uint64) string {
	return filepath.Join(Folder, fmt.Sprintf("%d-%d", root, start))
}

// Take returns what is kept for a tree, with copies of the descriptors, which
// the caller closes. The keeper keeps its own.
func Take(root *proc.Task) (*State, []int, error) {
	c, err := dial(root.PID, root.StartTime)
	if err != nil {
		return nil, nil, err
	}
	defer c.close()
	if err := c.send(order{Do: doTake}, nil); err != nil {
		return nil, nil, err
	}
	var state State
	fds, err := c.receive(&state)
	if err == nil && (len(fds) != len(state.Processes) || state.Root != root.PID || state.Start != root.StartTime) {
		err = fmt.Errorf("the keeper of process %d gives %d descriptors for %d processes of tree %d", root.PID, len(fds), len(state.Processes), state.Root)
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return &state, fds, nil
}

// Disarm makes a keeper forget the checkpoint that its trackers were armed for.
// Without a keeper it does nothing.
func Disarm(root *proc.Task) error { return tell(root.PID, root.StartTime, order{Do: doDisarm}, nil) }

// Stop ends the keeper of a tree. Without one it does nothing. One that does not answer is killed.
func Stop(root int, start uint64) error {
	err := tell(root, start, order{Do: doStop}, nil)
	if stuck(err) {
		if killErr := kill(root, start); !errors.Is(killErr, ErrNone) {
			return killErr
		}
	}
	return err
}

// Put hands trackers over to the keeper of a tree, in place of what it had; one
// is started where there is none. The caller keeps its own descriptors.
func Put(state *State, fds []int) error {
	if len(fds) != len(state.Processes) {
		return fmt.Errorf("%d descriptors for %d processes", len(fds), len(state.Processes))
	}
	put := order{Do: doPut, State: state}
	c, err := dial(state.Root, state.Start)
	if errors.Is(err, ErrNone) {
		if err = start(state.Root, state.Start); err == nil {
			c, err = dial(state.Root, state.Start)
		}
	}
	if err != nil {
		return err
	}
	defer c.close()
	return c.ask(put, fds)
}

// tell gives an order without an answer worth having.
func tell(root int, start uint64, o order, fds []int) error {
	c, err := dial(root, start)
	if errors.Is(err, ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.close()
	return c.ask(o, fds)
}

// List finds all keepers, by pid of their trees' roots. Sockets whose keepers
// are gone are removed. One that does not answer is in the list with an error;
// it keeps nobody waiting longer than another would.
func List() ([]Info, error) {
	entries, err := os.ReadDir(Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for trackers: %w", err)
	}
	var asked sync.WaitGroup
	all := make([]*Info, len(entries))
	for i, e := range entries {
		var root int
		var start uint64
		if n, _ := fmt.Sscanf(e.Name(), "%d-%d", &root, &start); n != 2 || strings.Contains(e.Name(), ".") {
			continue
		}
		asked.Go(func() {
			info, err := infoOf(root, start)
			switch {
			case errors.Is(err, ErrNone):
			case err != nil:
				all[i] = silent(root, start, err)
			default:
				all[i] = info
			}
		})
	}
	asked.Wait()
	var list []Info
	for _, info := range all {
		if info != nil {
			list = append(list, *info)
		}
	}
	slices.SortFunc(list, func(a, b Info) int { return a.Root - b.Root })
	return list, nil
}

// silent is what can be said of a keeper that did not answer.
func silent(root int, start uint64, err error) *Info {
	info := &Info{State: State{Root: root, Start: start}, Keeper: find(root, start), Err: err}
	if stuck(err) {
		info.Err = fmt.Errorf("it does not answer within %v, and may be stopped (SIGSTOP)", patience)
	}
	if task, err := proc.ReadTask(root); err == nil && task.StartTime == start {
		info.Comm = task.Comm
	}
	return info
}

func infoOf(root int, start uint64) (*Info, error) {
	c, err := dial(root, start)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.send(order{Do: doInfo}, nil); err != nil {
		return nil, err
	}
	var info Info
	if _, err := c.receive(&info); err != nil {
		return nil, err
	}
	if own, err := proc.PrivateMemory(info.Keeper); err == nil {
		info.Memory = own
	}
	return &info, nil
}

// start starts a keeper, which listens when this returns.
func start(root int, startTime uint64) error {
	if err := os.MkdirAll(Folder, 0o700); err != nil {
		return fmt.Errorf("make the folder for trackers: %w", err)
	}
	if err := os.Chmod(Folder, 0o700); err != nil {
		return fmt.Errorf("keep others out of the folder for trackers: %w", err)
	}
	path := socketPath(root, startTime)
	_ = os.Remove(path) // of one that is gone
	listener, err := listen(path)
	if err != nil {
		return fmt.Errorf("make the socket for the tracker of process %d: %w", root, err)
	}
	file := os.NewFile(uintptr(listener), Name)
	defer file.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{Name}, Dir: "/",
		Env:        []string{"GOMAXPROCS=1", "GOGC=20", fmt.Sprintf("%s=%d-%d", treeVariable, root, startTime)},
		ExtraFiles: []*os.File{file}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("start the process that keeps trackers, which is this program once more: %w", err)
	}
	go func() { _ = cmd.Wait() }() // if it ends before this program
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// order is what a keeper is asked to do.
type order struct {
	Do    string `json:"do"`
	State *State `json:"state,omitempty"`
}

const (
	doTake   = "take"
	doPut    = "put"
	doDisarm = "disarm"
	doStop   = "stop"
	doInfo   = "info"
)

// answer is that of a keeper to an order without a result.
type answer struct {
	Error string `json:"error,omitempty"`
}

// ask gives an order and waits until it is done.
func (c *conn) ask(o order, fds []int) error {
	if err := c.send(o, fds); err != nil {
		return err
	}
	var a answer
	if _, err := c.receive(&a); err != nil {
		return err
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
}

func encode(v any) ([]byte, error) { return json.Marshal(v) }
