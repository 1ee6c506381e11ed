package inject

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// A process is held for two things that must not have a write between them, and
// that the kernel cannot do in one step. All of its threads are stopped with
// ptrace(2) at the same time. Nothing of them is changed: a thread that waits in
// a system call goes on waiting, except in the few calls that end with EINTR
// whenever a thread is stopped (signal(7)).

const (
	// holdLimit bounds how long a process may be held back by one thread that
	// does not stop, such as one in vfork(2).
	holdLimit = 100 * time.Millisecond

	// maxHold is when the helper lets a process go by itself: whoever asked
	// for the hold is stuck.
	maxHold = 10 * time.Second
)

// errLapsed says that the helper did not wait for the end of a hold.
var errLapsed = errors.New("the process was let go before the end")

// Hold stops all threads of a process until release is called, or Stasis ends.
// Nothing else can be asked of the helper meanwhile. An error of release says
// that the process may have run before. Hold fails with an error that wraps
// [ErrUnsupported] when a thread does not stop, or another tracer has it, or
// [proc.ErrGone]; the process then runs.
func (h *Helper) Hold(pid int) (release func() error, err error) {
	h.mu.Lock()
	if err := h.order("hold %d", pid); err != nil {
		h.mu.Unlock()
		return nil, fmt.Errorf("stop the threads of process %d: %w", pid, err)
	}
	return func() error {
		defer h.mu.Unlock()
		return h.order("release")
	}, nil
}

// order sends an order whose answer is an error or nothing. The caller holds mu.
func (h *Helper) order(format string, args ...any) error {
	if err := unix.Sendmsg(h.socket, fmt.Appendf(nil, format, args...), nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("the helper that traces: %w", err)
	}
	message, fd, err := h.receive()
	if err != nil {
		return fmt.Errorf("the helper that traces: %w", err)
	}
	if fd >= 0 {
		unix.Close(fd)
		return errors.New("the helper that traces gives a descriptor where none belongs")
	}
	if message == done {
		return nil
	}
	return decodeError(message)
}

// done is the answer to an order that has nothing else to say.
const done = "done"

// serveHold holds a process until the next message, and answers both orders.
func serveHold(pid int) error {
	finished := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: see Userfaultfd
		finished <- holdUntilTold(pid)
	}()
	return <-finished
}

func holdUntilTold(pid int) error {
	threads, err := stopAll(pid)
	if err != nil {
		return answer(errors.Join(err, letGo(threads)))
	}
	if err := answer(nil); err != nil {
		return errors.Join(err, letGo(threads))
	}
	polled := []unix.PollFd{{Fd: helperSocket, Events: unix.POLLIN}}
	n := 0
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		n, err = unix.Poll(polled, int(maxHold.Milliseconds()))
	}
	if lapsed := n == 0; lapsed {
		err = errLapsed
	}
	err = errors.Join(err, letGo(threads))
	if _, _, readErr := receive(helperSocket); readErr != nil { // the order to release
		return readErr
	}
	return answer(err)
}

// answer sends an error, or that there is none.
func answer(err error) error {
	text := done
	if err != nil {
		text = encodeError(err)
	}
	return unix.Sendmsg(helperSocket, []byte(text), nil, nil, unix.MSG_NOSIGNAL)
}

// stopAll stops every thread of a process. A stopped thread makes no new ones,
// so when a list of the threads has none that is not stopped, all are. The
// threads that it returns have to be let go, also when there is an error.
func stopAll(pid int) (threads map[int]*tracee, err error) {
	threads = make(map[int]*tracee)
	deadline := time.Now().Add(holdLimit)
	for {
		tids, err := proc.Threads(pid)
		if err != nil {
			return threads, err
		}
		var fresh []*tracee
		for _, tid := range tids {
			if threads[tid] != nil {
				continue
			}
			t, err := interrupt(pid, tid)
			if err != nil {
				return threads, err
			}
			if t != nil {
				threads[tid] = t
				fresh = append(fresh, t)
			}
		}
		if len(fresh) == 0 {
			break
		}
		for _, t := range fresh {
			status, err := t.waitUntil(deadline)
			if err == nil {
				t.keep(status)
			}
			switch {
			case errors.Is(err, proc.ErrGone):
				delete(threads, t.tid)
			case errors.Is(err, errBusy):
				return threads, fmt.Errorf("%w: %w", ErrUnsupported, err)
			case err != nil:
				return threads, err
			}
		}
	}
	if len(threads) == 0 {
		return threads, fmt.Errorf("process %d: %w", pid, proc.ErrGone)
	}
	return threads, nil
}

// interrupt asks a thread to stop; nil when it has ended.
func interrupt(pid, tid int) (*tracee, error) {
	err := ptrace(unix.PTRACE_SEIZE, tid, 0, 0)
	if errors.Is(err, unix.ESRCH) || err != nil && ended(pid, tid) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: seize thread %d: %w", ErrUnsupported, tid, err)
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("stop thread %d: %w", tid, err)
	}
	return &tracee{tid: tid}, nil
}

// ended says whether a thread has ended, and only its number is left: the first
// thread of a process keeps it as long as there are others.
func ended(pid, tid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, tid))
	if err != nil {
		return true
	}
	state := raw[bytes.LastIndexByte(raw, ')')+1:] // a name can have anything in it
	return bytes.HasPrefix(state, []byte(" Z")) || bytes.HasPrefix(state, []byte(" X"))
}

// letGo detaches from threads. One that did not stop in time cannot be detached
// yet: the end of this operating system thread does that.
func letGo(threads map[int]*tracee) error {
	var errs []error
	for _, t := range threads {
		if err := t.detach(); err != nil && !errors.Is(err, proc.ErrGone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
