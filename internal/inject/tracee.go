package inject

import (
	"bytes"
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
	ptraceGetRseq    = 0x420f  // PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13)
	ptraceGetSUD     = 0x4211  // PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG (Linux 6.4)
	suspendSeccomp   = 1 << 21 // PTRACE_O_SUSPEND_SECCOMP (Linux 4.3)
	codeSegment64    = 0x33    // cs of 64-bit user code

	// sysGood marks the stops at a system call's begin and end (PTRACE_O_TRACESYSGOOD).
	sysGood     = unix.PTRACE_O_TRACESYSGOOD
	callStop    = unix.SIGTRAP | 0x80
	eventStop   = 128 // PTRACE_EVENT_STOP
	eventShifts = 16

	// stopLimit bounds the wait for a thread to stop. One that sleeps in the
	// kernel without listening to signals (in vfork, say) is left alone and
	// another one is tried.
	stopLimit = 200 * time.Millisecond

	// maxStops bounds how many other stops, such as those of the whole process,
	// may come before that of a system call.
	maxStops = 64
)

// errBusy says that this thread cannot be stopped now, but another may.
var errBusy = errors.New("the thread does not stop")

// errMoved says that the thread runs another program than when the system call
// instruction was looked for.
var errMoved = errors.New("the process has just executed another program")

// tracee is a stopped thread with what is needed to put it back.
type tracee struct {
	tid      int
	regs     unix.PtraceRegs
	sigmask  uint64
	filtered bool        // its seccomp filters, if it has any, are in force
	signal   unix.Signal // taken from a held thread on its way to delivery, given back at its release
}

// seize makes this thread the tracer of another one; filtered says that seccomp
// filters stay in force, without the right to suspend them or in a kernel without
// them. A thread that an earlier call of this program could not stop in time is
// let go when that call's own thread ends, which may be a moment after the call.
func seize(tid int) (filtered bool, err error) {
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		filtered = false
		err := ptrace(unix.PTRACE_SEIZE, tid, 0, suspendSeccomp|sysGood)
		if err != nil {
			filtered = true
			err = ptrace(unix.PTRACE_SEIZE, tid, 0, sysGood)
		}
		switch {
		case err == nil:
			return filtered, nil
		case errors.Is(err, unix.ESRCH):
			return filtered, errBusy // the thread has ended, or is about to
		case errors.Is(err, unix.EPERM) && tracedByUs(tid) && time.Since(begun) < stopLimit:
		default:
			return filtered, fmt.Errorf("seize thread %d: %w", tid, err)
		}
	}
}

func tracedByUs(tid int) bool {
	task, err := proc.ReadTask(tid)
	return err == nil && task.TracerPID == unix.Getpid()
}

// stop seizes and stops a thread and holds back its signals.
func stop(tid int) (*tracee, error) {
	filtered, err := seize(tid)
	if err != nil {
		return nil, err
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil {
		return nil, fmt.Errorf("stop thread %d: %w", tid, err)
	}
	t := &tracee{tid: tid, filtered: filtered}
	if err := t.waitForInterrupt(); err != nil {
		return nil, err
	}
	if err := t.prepare(); err != nil {
		return nil, errors.Join(err, t.detach())
	}
	return t, nil
}

// waitForInterrupt waits until the thread stops because it was asked to. A signal
// that was on its way to the thread goes on: held back here, it would lose what
// it has with it.
func (t *tracee) waitForInterrupt() error {
	deadline := time.Now().Add(stopLimit)
	for {
		status, err := t.waitUntil(deadline)
		if err != nil {
			return err
		}
		if int(status)>>eventShifts == eventStop {
			return nil
		}
		if err := ptrace(unix.PTRACE_CONT, t.tid, 0, uintptr(status.StopSignal())); err != nil {
			return t.lost(err)
		}
	}
}

// prepare notes what the stopped thread is put back to, and blocks its signals.
// It refuses a thread that would not survive a system call of ours.
func (t *tracee) prepare() error {
	if err := unix.PtraceGetRegs(t.tid, &t.regs); err != nil {
		return fmt.Errorf("read the registers of thread %d: %w", t.tid, err)
	}
	if t.regs.Cs != codeSegment64 {
		return fmt.Errorf("thread %d runs 32-bit code: %w", t.tid, ErrUnsupported)
	}
	if err := t.mayCall(); err != nil {
		return err
	}
	if err := t.leaveCriticalSection(); err != nil {
		return err
	}
	if err := ptrace(ptraceGetSigMask, t.tid, 8, uintptr(unsafe.Pointer(&t.sigmask))); err != nil {
		return fmt.Errorf("read the signal mask of thread %d: %w", t.tid, err)
	}
	all := ^uint64(0)
	if err := ptrace(ptraceSetSigMask, t.tid, 8, uintptr(unsafe.Pointer(&all))); err != nil {
		return fmt.Errorf("block the signals of thread %d: %w", t.tid, err)
	}
	return nil
}

// mayCall says whether the thread gets through a system call: a seccomp filter
// could kill the process for one that is not its own, and where calls are
// dispatched to the program (prctl(2), PR_SET_SYSCALL_USER_DISPATCH) it would get
// a signal for it.
func (t *tracee) mayCall() error {
	if t.filtered {
		task, err := proc.ReadTask(t.tid)
		if err != nil {
			return err
		}
		if task.Seccomp != 0 {
			return fmt.Errorf("thread %d has a seccomp filter, which could kill it for a call, and which may not be suspended from here (PTRACE_O_SUSPEND_SECCOMP needs CAP_SYS_ADMIN and no filter of one's own): %w", t.tid, ErrUnsupported)
		}
	}
	var dispatch struct{ mode, selector, offset, length uint64 }
	err := ptrace(ptraceGetSUD, t.tid, unsafe.Sizeof(dispatch), uintptr(unsafe.Pointer(&dispatch)))
	if err == nil && dispatch.mode != 0 { // older kernels cannot be asked
		return fmt.Errorf("thread %d: %w", t.tid, ErrDispatched)
	}
	return nil
}

// leaveCriticalSection does for a thread that was stopped in a restartable
// sequence (rseq(2)) what the kernel does when such a thread loses its CPU: it
// goes on at the sequence's abort handler. The kernel would not do it any more: it
// looks at where the thread goes on next, and that is our system call.
func (t *tracee) leaveCriticalSection() error {
	var config struct {
		pointer                uint64
		size, signature, flags uint32
		_                      uint32
	}
	known := ptrace(ptraceGetRseq, t.tid, unsafe.Sizeof(config), uintptr(unsafe.Pointer(&config))) == nil
	if !known || config.pointer == 0 {
		return nil // the thread has no such sequences, or the kernel is too old to tell
	}
	const offsetOfSequence = 8 // struct rseq of linux/rseq.h
	var at uint64
	if err := t.peek(config.pointer+offsetOfSequence, &at); err != nil || at == 0 {
		return err
	}
	var sequence struct {
		versionAndFlags, start, length, abort uint64 // struct rseq_cs
	}
	for i, into := range []*uint64{&sequence.versionAndFlags, &sequence.start, &sequence.length, &sequence.abort} {
		if err := t.peek(at+8*uint64(i), into); err != nil {
			return err
		}
	}
	if t.regs.Rip-sequence.start < sequence.length {
		t.regs.Rip = sequence.abort
	}
	return nil
}

// peek reads a word of the thread's memory.
func (t *tracee) peek(at uint64, into *uint64) error {
	word := (*[8]byte)(unsafe.Pointer(into))
	if n, err := unix.PtracePeekData(t.tid, uintptr(at), word[:]); err != nil || n != len(word) {
		return fmt.Errorf("read memory at %#x of thread %d: %w", at, t.tid, errors.Join(err, ErrUnsupported))
	}
	return nil
}

// hasSyscallAt says whether there is a system call instruction at an address. The
// process may have executed another program since it was looked for, which has its
// vdso elsewhere.
func (t *tracee) hasSyscallAt(gadget uint64) bool {
	code := make([]byte, len(syscallInstruction))
	n, err := unix.PtracePeekText(t.tid, uintptr(gadget), code)
	return err == nil && n == len(code) && bytes.Equal(code, syscallInstruction)
}

// syscall lets the stopped thread execute one system call.
//
// The thread is followed from the call's begin to its end. A single step would do
// as well, but ends in a SIGTRAP that cannot be held back: the kernel then takes
// the program's own handler of SIGTRAP from it.
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
	for range 2 { // the begin of the call, and its end
		if err := t.toCallStop(); err != nil {
			return 0, err
		}
	}
	if err := unix.PtraceGetRegs(t.tid, &regs); err != nil {
		return 0, t.lost(err)
	}
	if result := int64(regs.Rax); result < 0 && result > -4096 {
		return 0, unix.Errno(-result)
	}
	return regs.Rax, nil
}

// toCallStop lets the thread run until a system call begins or ends. SIGSTOP,
// which cannot be blocked, or a stop of the whole process may come before: it takes
// its course, and the thread goes on alone.
//
// There is no way back from here, as the thread has the registers of another
// place. So there is no limit to the wait: on a busy machine it takes as long as it
// takes to get a CPU, and in a frozen control group until that is thawed.
func (t *tracee) toCallStop() error {
	var pass unix.Signal
	for range maxStops {
		if err := ptrace(unix.PTRACE_SYSCALL, t.tid, 0, uintptr(pass)); err != nil {
			return t.lost(err)
		}
		status, err := t.waitUntil(time.Time{})
		if err != nil {
			return err
		}
		pass = 0
		switch signal := status.StopSignal(); {
		case signal == callStop:
			return nil
		case int(status)>>eventShifts == 0 && signal == unix.SIGSTOP:
			pass = signal
		case int(status)>>eventShifts == 0:
			return fmt.Errorf("thread %d gets %v for a system call: %w", t.tid, signal, ErrUnsupported)
		}
	}
	return fmt.Errorf("thread %d: %w after %d stops", t.tid, errBusy, maxStops)
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
// ptrace itself makes (an interrupt, a stop of the group) is not one.
func (t *tracee) keep(status unix.WaitStatus) {
	if int(status)>>eventShifts == 0 && status.StopSignal() != unix.SIGTRAP {
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

// waitUntil waits until the thread has stopped; the zero time is no limit. The
// kernel has no wait with a time limit for a traced thread, so it is asked again and
// again, and once more when the time is over: on a busy machine it may be over
// before the first time.
func (t *tracee) waitUntil(deadline time.Time) (unix.WaitStatus, error) {
	pause := 20 * time.Microsecond
	for last := false; ; {
		var status unix.WaitStatus
		pid, err := unix.Wait4(t.tid, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, t.lost(err)
		case pid == 0 && last:
			return 0, fmt.Errorf("thread %d: %w in time", t.tid, errBusy)
		case pid == 0:
			last = !deadline.IsZero() && time.Now().After(deadline)
			time.Sleep(pause)
			pause = min(pause*21/20, time.Millisecond)
		case status.Exited() || status.Signaled():
			return 0, fmt.Errorf("thread %d ended: %w", t.tid, proc.ErrGone)
		case status.Stopped():
			return status, nil
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
