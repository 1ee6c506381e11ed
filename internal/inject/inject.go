// Package inject runs single system calls inside another process.
//
// One thread of the target is stopped with ptrace(2), made to execute a
// "syscall" instruction that stands in its vdso by a single step, and put back
// exactly as it was: no code of the target is changed, its signals are held
// back meanwhile, and a system call that was interrupted starts again by
// itself. The stop lasts well under a millisecond.
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

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// ErrUnsupported says that this target cannot be made to run a system call,
// although it lives: 32-bit code, no vdso, or no thread that can be stopped.
var ErrUnsupported = errors.New("no system call can be run in the process")

// Userfaultfd creates a userfaultfd(2) inside the process and returns this
// process' copy of it; the target keeps none. The caller closes it. The flags
// are those of userfaultfd(2).
//
// It fails with an error that wraps [ErrUnsupported] or [proc.ErrGone], or the
// error number of the call that failed.
func Userfaultfd(pid int, flags int) (fd int, err error) {
	tids, err := proc.ReadTask(pid)
	if err != nil {
		return -1, err
	}
	gadget, err := FindSyscall(pid)
	if err != nil {
		return -1, err
	}
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and with it
		// every tie to the target.
		runtime.LockOSThread()
		fd, err := -1, fmt.Errorf("no thread of process %d could be stopped: %w", pid, ErrUnsupported)
		for _, tid := range tids.Threads {
			if fd, err = createIn(pid, tid, gadget, flags); !errors.Is(err, errBusy) {
				break
			}
		}
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		return -1, fmt.Errorf("create a userfaultfd in process %d: %w", pid, r.err)
	}
	return r.fd, nil
}

// createIn makes the userfaultfd in one thread and fetches it.
func createIn(pid, tid int, gadget uint64, flags int) (fd int, err error) {
	t, err := stop(tid)
	if err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, t.release()) }()

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
