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
	"os"
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

// forkPause is how long a fork takes at most, in general.
const forkPause = 2 * time.Millisecond

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
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and with it
		// every tie to the target.
		runtime.LockOSThread()
		fd, err := createInAny(pid, task.Threads, gadget, flags)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		return -1, r.err
	}
	return r.fd, nil
}

// createInAny makes the userfaultfd in the first thread that can be stopped.
func createInAny(pid int, threads []int, gadget uint64, flags int) (fd int, err error) {
	fd, err = -1, fmt.Errorf("no thread could be stopped: %w", ErrUnsupported)
	for begun, i := time.Now(), 0; i < len(threads) && time.Since(begun) < allLimit; i++ {
		var number int
		if fd, number, err = createIn(pid, threads[i], gadget, flags); errors.Is(err, errBusy) {
			continue
		}
		if err == nil && len(threads) > 1 {
			err = closeCopies(pid, fd, number, gadget)
		}
		break
	}
	return fd, err
}

// userfaultfdLink is what a descriptor of a userfaultfd links to in /proc/PID/fd.
const userfaultfdLink = "anon_inode:[userfaultfd]"

// createIn makes the userfaultfd in one thread and fetches it. The number that it
// had there is free again.
func createIn(pid, tid int, gadget uint64, flags int) (fd, number int, err error) {
	t, err := stop(tid)
	if err != nil {
		return -1, -1, err
	}
	defer func() { err = errors.Join(err, t.release()) }()

	if !t.hasSyscallAt(gadget) {
		return -1, -1, errMoved
	}
	remote, err := t.syscall(gadget, unix.SYS_USERFAULTFD, uint64(flags))
	if err != nil {
		return -1, -1, err
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
	return fd, int(remote), err
}

// closeCopies closes the copies of a userfaultfd that children have which another
// thread has made meanwhile. A fork that was under way shows its child a moment
// later, so it looks twice. The descriptor is closed with an error.
func closeCopies(pid, fd, number int, gadget uint64) error {
	err := closeCopiesNow(pid, fd, number, gadget)
	if err == nil {
		time.Sleep(forkPause)
		err = closeCopiesNow(pid, fd, number, gadget)
	}
	if err != nil {
		unix.Close(fd)
	}
	return err
}

// closeCopiesNow looks at the children that there are. Their system call
// instruction is where their parent's is.
func closeCopiesNow(pid, fd, number int, gadget uint64) error {
	children, err := proc.Children(pid)
	for _, child := range children {
		link, linkErr := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", child, number))
		if linkErr != nil || link != userfaultfdLink || !sameFile(fd, child, number) {
			continue // it was born before or later, has ended, or executes another program
		}
		if closeErr := closeIn(child, number, gadget); closeErr != nil && !errors.Is(closeErr, proc.ErrGone) {
			err = errors.Join(err, fmt.Errorf("close the copy of child %d: %w", child, closeErr))
		}
	}
	return err
}

// sameFile says whether a descriptor of ours and one of another process are the
// same open file.
func sameFile(fd, pid, number int) bool {
	const kcmpFile = 0 // KCMP_FILE of kcmp(2)
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(unix.Getpid()), uintptr(pid), kcmpFile, uintptr(fd), uintptr(number), 0)
	return errno == 0 && order == 0
}

func closeIn(pid, number int, gadget uint64) (err error) {
	t, err := stop(pid)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.release()) }()
	if !t.hasSyscallAt(gadget) {
		return nil // it has executed another program, and has no copy any more
	}
	_, err = t.syscall(gadget, unix.SYS_CLOSE, uint64(number))
	return err
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
