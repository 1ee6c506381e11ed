package inject

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

const (
	ptraceGetSigMask = 0x420a  // PTRACE_GETSIGMASK (Linux 3.11)
	ptraceSetSigMask = 0x420b  // PTRACE_SETSIGMASK
	suspendSeccomp   = 1 << 21 // PTRACE_O_SUSPEND_SECCOMP (Linux 4.3)
	codeSegment64    = 0x33    // cs of 64-bit user code

	// stopLimit bounds the wait for a thread to stop. One that sleeps in the
	// kernel without listening to signals (in vfork, say) is left alone and
	// another one is tried.
	stopLimit = 200 * time.Millisecond

	// stepLimit bounds the wait for a single step. There is no way back from
	// there: the thread has the registers of another place. On a machine that is
	// busy enough a step may take as long as it takes to get a CPU.
	stepLimit = 30 * time.Second

	// maxSteps bounds how often a single step is tried again.
	maxSteps = 16
)

// errBusy says that this thread cannot be stopped now, but another may.
var errBusy = errors.New("the thread does not stop")

// tracee is a stopped thread with what is needed to put it back.
type tracee struct {
	tid     int
	regs    unix.PtraceRegs
	sigmask uint64
	signal  unix.Signal // taken from the target while it was held, given back at its release
}

// seize makes this thread the tracer of another one. A thread that an earlier
// call of this program could not stop in time is let go when that call's own
// thread ends, which may be a moment after the call.
func seize(tid int) error {
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		err := ptrace(unix.PTRACE_SEIZE, tid, 0, suspendSeccomp)
		if err != nil { // without the right to suspend a filter, or in a kernel without filters
			err = ptrace(unix.PTRACE_SEIZE, tid, 0, 0)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ESRCH):
			return errBusy // the thread has ended, or is about to
		case errors.Is(err, unix.EPERM) && tracedByUs(tid) && time.Since(begun) < stopLimit:
		default:
			return fmt.Errorf("seize thread %d: %w", tid, err)
		}
	}
}

func tracedByUs(tid int) bool {
	task, err := proc.ReadTask(tid)
	return err == nil && task.TracerPID == unix.Getpid()
}

// stop seizes and stops a thread and holds back its signals.
func stop(tid int) (*tracee, error) {
	if err := seize(tid); err != nil {
		return nil, err
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil {
		return nil, fmt.Errorf("stop thread %d: %w", tid, err)
	}
	t := &tracee{tid: tid}
	if err := t.wait(); err != nil {
		return nil, err
	}
	if err := unix.PtraceGetRegs(tid, &t.regs); err != nil {
		return nil, errors.Join(fmt.Errorf("read the registers of thread %d: %w", tid, err), t.detach())
	}
	if t.regs.Cs != codeSegment64 {
		return nil, errors.Join(fmt.Errorf("thread %d runs 32-bit code: %w", tid, ErrUnsupported), t.detach())
	}
	if err := ptrace(ptraceGetSigMask, tid, 8, uintptr(unsafe.Pointer(&t.sigmask))); err != nil {
		return nil, errors.Join(fmt.Errorf("read the signal mask of thread %d: %w", tid, err), t.detach())
	}
	all := ^uint64(0)
	if err := ptrace(ptraceSetSigMask, tid, 8, uintptr(unsafe.Pointer(&all))); err != nil {
		return nil, errors.Join(fmt.Errorf("block the signals of thread %d: %w", tid, err), t.detach())
	}
	return t, nil
}

// syscall lets the stopped thread execute one system call.
func (t *tracee) syscall(gadget uint64, number uintptr, args ...uint64) (uint64, error) {
	regs := t.regs
	regs.Rip, regs.Rax = gadget, uint64(number)
	// Without this the kernel would take the interrupted call of the thread
	// for the one to restart, and move the instruction pointer.
	regs.Orig_rax = ^uint64(0)
	for i, into := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx}[:len(args)] {
		*into = args[i]
	}
	if err := unix.PtraceSetRegs(t.tid, &regs); err != nil {
		return 0, t.lost(err)
	}
	if err := t.step(&regs); err != nil {
		return 0, err
	}
	if result := int64(regs.Rax); result < 0 && result > -4096 {
		return 0, unix.Errno(-result)
	}
	return regs.Rax, nil
}

// step executes the instruction at regs.Rip. A stop of another kind (SIGSTOP
// cannot be held back, nor can a stop of the whole group) may come before it;
// then it is tried again.
func (t *tracee) step(regs *unix.PtraceRegs) error {
	from := regs.Rip
	for range maxSteps {
		if err := unix.PtraceSingleStep(t.tid); err != nil {
			return t.lost(err)
		}
		if err := t.waitUntil(time.Now().Add(stepLimit)); err != nil {
			return err
		}
		if err := unix.PtraceGetRegs(t.tid, regs); err != nil {
			return t.lost(err)
		}
		if regs.Rip != from {
			return nil
		}
	}
	return fmt.Errorf("thread %d: %w after %d steps", t.tid, errBusy, maxSteps)
}

// release puts the thread back as it was and lets it go.
func (t *tracee) release() error {
	if err := unix.PtraceSetRegs(t.tid, &t.regs); err != nil {
		return t.lost(err)
	}
	if err := ptrace(ptraceSetSigMask, t.tid, 8, uintptr(unsafe.Pointer(&t.sigmask))); err != nil {
		return t.lost(err)
	}
	return t.detach()
}

func (t *tracee) detach() error {
	if err := ptrace(unix.PTRACE_DETACH, t.tid, 0, uintptr(t.signal)); err != nil {
		return t.lost(err)
	}
	return nil
}

// keep remembers a signal that stopped the thread on its way to delivery. What
// ptrace itself makes (a step, an interrupt, a stop of the group) is not one.
func (t *tracee) keep(status unix.WaitStatus) {
	if event := int(status) >> 16; event == 0 && status.StopSignal() != unix.SIGTRAP {
		t.signal = status.StopSignal()
	}
}

// lost tells a thread that was killed meanwhile from other failures.
func (t *tracee) lost(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("thread %d: %w", t.tid, proc.ErrGone)
	}
	return fmt.Errorf("trace thread %d: %w", t.tid, err)
}

// wait waits until the thread has stopped. The kernel has no wait with a time
// limit for a traced thread, so it is asked again and again.
func (t *tracee) wait() error { return t.waitUntil(time.Now().Add(stopLimit)) }

// waitUntil asks once more when the time is over: on a busy machine it may be
// over before the first time.
func (t *tracee) waitUntil(deadline time.Time) error {
	for last := false; ; {
		var status unix.WaitStatus
		pid, err := unix.Wait4(t.tid, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return t.lost(err)
		case pid == 0 && last:
			return fmt.Errorf("thread %d: %w in time", t.tid, errBusy)
		case pid == 0:
			last = time.Now().After(deadline)
			time.Sleep(20 * time.Microsecond)
		case status.Exited() || status.Signaled():
			return fmt.Errorf("thread %d ended: %w", t.tid, proc.ErrGone)
		case status.Stopped():
			t.keep(status)
			return nil
		}
	}
}

func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
