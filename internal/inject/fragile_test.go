package inject

import (
	"errors"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/subject"
	"stasis/internal/testkit"
)

// TestARestartableSequence makes calls in a thread that is always in a
// restartable sequence: an interrupted one may not go on where it was.
func TestARestartableSequence(t *testing.T) {
	s := testkit.StartSubject(t, "rseq")
	tid := int(s.Note(t).Has["spinner"])
	gadget, err := FindSyscall(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	for range 40 {
		var fd int
		err := patiently(func() (err error) {
			onThread(func() { fd, _, err = createIn(s.PID(), tid, gadget, unix.O_CLOEXEC) })
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	s.Prove(t)
	if s.Note(t).Has["aborts"] == 0 {
		t.Error("no sequence was interrupted")
	}
}

// onThread runs something in an operating system thread that ends with it.
func onThread(work func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		work()
	}()
	<-done
}

// patiently tries again while a thread does not stop in time, as on a busy machine.
func patiently(try func() error) (err error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if err = try(); !errors.Is(err, errBusy) {
			break
		}
	}
	return err
}

// madeIn makes a userfaultfd in a process, and closes it.
func madeIn(pid int) error {
	return patiently(func() error {
		fd, err := Userfaultfd(pid, unix.O_CLOEXEC)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	})
}

// TestDispatchedCalls: a system call of ours would be a signal for the program.
func TestDispatchedCalls(t *testing.T) {
	s := testkit.StartSubject(t, "dispatched")
	if err := madeIn(s.PID()); !errors.Is(err, ErrDispatched) {
		t.Errorf("got %v", err)
	}
	s.Prove(t)
}

// TestAFilterThatMayNotBeSuspended traces from a program that has a filter of its
// own, as in a container, and so may not suspend another's.
func TestAFilterThatMayNotBeSuspended(t *testing.T) {
	free := testkit.StartSubject(t, "handlers")
	filtered := testkit.StartSubject(t, "filtered")
	if err := madeIn(filtered.PID()); err != nil {
		t.Errorf("a filter is not suspended: %v", err)
	}
	tracer := subject.Start(t, "filtered tracer")
	if answer := tracer.Ask(strconv.Itoa(free.PID())); answer != "made" {
		t.Errorf("of a process without a filter: %s", answer)
	}
	if answer := tracer.Ask(strconv.Itoa(filtered.PID())); !strings.Contains(answer, "seccomp") {
		t.Errorf("of a process with a filter: %s", answer)
	}
	filtered.Prove(t)
	free.Prove(t)
}

// filteredTracer has a filter that allows all, and makes userfaultfds in the
// processes that it is told.
func filteredTracer(say func(string, ...any), hear func() (string, bool)) {
	allow := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
	program := unix.SockFprog{Len: 1, Filter: &allow[0]}
	err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err == nil {
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
		if errno != 0 {
			err = errno
		}
	}
	for {
		order, ok := hear()
		if !ok {
			return
		}
		pid, _ := strconv.Atoi(order)
		if err == nil {
			err = madeIn(pid)
		}
		if err != nil {
			say("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
			return
		}
		say("made")
	}
}

// TestAChildThatIsBornMeanwhile: a child of another thread gets a copy of the
// descriptor, which must not stay with it.
func TestAChildThatIsBornMeanwhile(t *testing.T) {
	s := testkit.StartSubject(t, "heir")
	number, child := int(s.Note(t).Has["fd"]), int(s.Note(t).Has["child"])
	gadget, err := FindSyscall(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	err = patiently(func() (err error) {
		if fd, err = Fetch(s.PID(), number); err != nil {
			return err
		}
		if !sameFile(fd, child, number) {
			return errors.New("the child has no copy")
		}
		onThread(func() { err = closeCopies(s.PID(), fd, number, gadget) })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if sameFile(fd, child, number) {
		t.Error("the child still has its copy")
	}
	unix.Close(fd)
	waitForState(t, child, 'S')
	s.Prove(t)
}
