package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

const (
	// Name is what a keeper is called in the list of processes.
	Name           = "stasis-tracker"
	keeperListener = 3
	treeVariable   = "STASIS_TRACKED"
)

// init turns this process into a keeper if that is what it was started for.
func init() {
	if len(os.Args) != 1 || os.Args[0] != Name {
		return
	}
	var root int
	var start uint64
	if n, _ := fmt.Sscanf(os.Getenv(treeVariable), "%d-%d", &root, &start); n != 2 {
		return
	}
	unix.CloseOnExec(keeperListener)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	k := &keeper{state: State{Root: root, Start: start}}
	k.serve()
	if !k.ended { // else it is gone, and the path may be another one's
		_ = os.Remove(socketPath(root, start))
	}
	os.Exit(0)
}

// keeper is the state of a keeper's process.
type keeper struct {
	state State
	fds   []int
	ended bool
}

// serve does as it is told until the root of the tree ends.
func (k *keeper) serve() {
	pidfd, err := unix.PidfdOpen(k.state.Root, 0)
	if err != nil || !k.rootLives() {
		return
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	go func() {
		<-terminated
		_ = os.Remove(socketPath(k.state.Root, k.state.Start))
		os.Exit(0)
	}()
	debug.FreeOSMemory() // what the initialisation of the whole program left
	for !k.ended {
		both := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: keeperListener, Events: unix.POLLIN}}
		if _, err := unix.Poll(both, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if both[0].Revents != 0 {
			return
		}
		if both[1].Revents != 0 {
			k.answer()
		}
	}
}

func (k *keeper) rootLives() bool {
	task, err := proc.ReadTask(k.state.Root)
	return err == nil && task.StartTime == k.state.Start
}

// answer serves one client. A client that does not speak is dropped after a
// while.
func (k *keeper) answer() {
	fd, _, err := unix.Accept4(keeperListener, unix.SOCK_CLOEXEC)
	if err != nil {
		return
	}
	c := &conn{fd}
	defer c.close()
	if limitTime(fd) != nil {
		return
	}
	var o order
	fds, err := c.receive(&o)
	if err != nil {
		closeAll(fds)
		return
	}
	if o.Do == doPut {
		_ = c.send(answer{k.put(&o, fds)}, nil)
		return
	}
	closeAll(fds)
	switch o.Do {
	case doTake:
		_ = c.send(k.state, k.fds)
	case doInfo:
		_ = c.send(Info{State: k.state, Keeper: os.Getpid()}, nil)
	case doDisarm:
		k.state.Armed, k.state.Dir = "", ""
		_ = c.send(answer{}, nil)
	case doStop:
		k.ended = true
		_ = os.Remove(socketPath(k.state.Root, k.state.Start))
		closeAll(k.fds) // the tracking has ended when the answer is there
		_ = c.send(answer{}, nil)
	default:
		_ = c.send(answer{fmt.Sprintf("unknown order %q", o.Do)}, nil)
	}
}

func (k *keeper) put(o *order, fds []int) (problem string) {
	if o.State == nil || o.State.Root != k.state.Root || o.State.Start != k.state.Start || len(o.State.Processes) != len(fds) {
		closeAll(fds)
		return "these are not trackers of this tree"
	}
	closeAll(k.fds)
	k.state, k.fds = *o.State, fds
	debug.FreeOSMemory()
	return ""
}
