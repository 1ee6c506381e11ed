package inject

import (
	"errors"
	"runtime"
	"strconv"
	"strings"
	"testing"
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
	made := 0
	for range 200 {
		var fd int
		onThread(func() { fd, err = createIn(s.PID(), tid, gadget, unix.O_CLOEXEC) })
		switch {
		case err == nil:
			made++
			unix.Close(fd)
		case !errors.Is(err, errBusy):
			t.Fatal(err)
		}
	}
	if made == 0 {
		t.Error("no userfaultfd could be made")
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

// TestDispatchedCalls: a system call of ours would be a signal for the program.
func TestDispatchedCalls(t *testing.T) {
	s := testkit.StartSubject(t, "dispatched")
	if fd, err := Userfaultfd(s.PID(), unix.O_CLOEXEC); !errors.Is(err, ErrDispatched) {
		t.Errorf("got %d, %v", fd, err)
	}
	s.Prove(t)
}

// TestAFilterThatMayNotBeSuspended traces from a program that has a filter of its
// own, as in a container, and so may not suspend another's.
func TestAFilterThatMayNotBeSuspended(t *testing.T) {
	free := testkit.StartSubject(t, "handlers")
	filtered := testkit.StartSubject(t, "filtered")
	if fd, err := Userfaultfd(filtered.PID(), unix.O_CLOEXEC); err != nil {
		t.Errorf("a filter is not suspended: %v", err)
	} else {
		unix.Close(fd)
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
		var fd int
		if err == nil {
			if fd, err = Userfaultfd(pid, unix.O_CLOEXEC); err == nil {
				unix.Close(fd)
			}
		}
		if err != nil {
			say("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
			return
		}
		say("made")
	}
}
