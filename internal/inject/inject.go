// Package inject runs single system calls inside another process.
//
// One thread of the target is stopped with ptrace(2), made to execute a
// "syscall" instruction that stands in its vdso, and put back exactly as it was:
// no code of the target is changed, its signals are held back meanwhile, and a
// system call that was interrupted starts again by itself. The stop lasts well
// under a millisecond.
//
// Everything happens on one locked operating system thread that ends with the
// call. Should Stasis return early or panic, the end of that thread detaches
// the target.
//
// [Userfaultfd] may be called for several processes at once, and for one
// process by one caller at a time: a second tracer is refused by the kernel.
package inject

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// ErrUnsupported says that this target cannot be made to run a system call,
// although it lives: 32-bit code, no vdso, or no thread that can be stopped.
var ErrUnsupported = errors.New("no system call can be run in the process")

// ErrDispatched says that the process has its system calls dispatched to code of
// its own, as Wine does (prctl(2), PR_SET_SYSCALL_USER_DISPATCH). Neither Stasis
// nor CRIU can run one in it.
var ErrDispatched = fmt.Errorf("%w: its system calls are dispatched to itself (PR_SET_SYSCALL_USER_DISPATCH)", ErrUnsupported)

// maxMoves bounds how often a process is tried again that executes another program
// at just the moment when it is looked at.
const maxMoves = 20

// allLimit bounds the attempts to stop one thread after another: in a frozen
// control group none of a thousand stops.
const allLimit = time.Second

// Userfaultfd creates a userfaultfd(2) inside the process and returns this
// process' copy of it; the target keeps none. The caller closes it. The flags
// are those of userfaultfd(2).
//
// It fails with an error that wraps [ErrUnsupported] or [proc.ErrGone], or the
// error number of the call that failed.
func Userfaultfd(pid int, flags int) (fd int, err error) {
	for range maxMoves {
		if fd, err = userfaultfd(pid, flags); !errors.Is(err, errMoved) {
			break
		}
	}
	if err != nil {
		return -1, fmt.Errorf("create a userfaultfd in process %d: %w", pid, err)
	}
	return fd, nil
}

func userfaultfd(pid int, flags int) (fd int, err error) {
	task, err := proc.ReadTask(pid)
	if err != nil {
		return -1, err
	}
	gadget, err := FindSyscall(pid)
	if err != nil {
		return -1, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with this goroutine, and with it
		// every tie to the target.
		runtime.LockOSThread()
		fd, err = -1, fmt.Errorf("no thread could be stopped: %w", ErrUnsupported)
		for begun, i := time.Now(), 0; i < len(task.Threads) && time.Since(begun) < allLimit; i++ {
			if fd, err = createIn(pid, task.Threads[i], gadget, flags); !errors.Is(err, errBusy) {
				break
			}
		}
	}()
	<-done
	return fd, err
}

// createIn makes the userfaultfd in one thread and fetches it.
func createIn(pid, tid int, gadget uint64, flags int) (fd int, err error) {
	t, err := stop(tid)
	if err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, t.release()) }()

	if !t.hasSyscallAt(gadget) {
		return -1, errMoved
	}
	remote, err := t.syscall(gadget, unix.SYS_USERFAULTFD, uint64(flags))
	if err != nil {
		return -1, err
	}
	fd, err = Fetch(pid, int(remote))
	// CRIU refuses a process that holds a userfaultfd, so no copy may stay.
	if _, closeErr := t.syscall(gadget, unix.SYS_CLOSE, remote); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("close it there: %w", closeErr))
	}
	if err != nil && fd >= 0 {
		unix.Close(fd)
		fd = -1
	}
	return fd, err
}

// Fetch copies a descriptor of another process into this one.
func Fetch(pid, remote int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, remote, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd: %w", err)
	}
	return fd, nil
}
