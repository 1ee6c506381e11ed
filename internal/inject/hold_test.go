package inject

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/subject"
)

// holdPatiently tries again while a thread does not stop in time, as on a busy machine or an emulated one. Through the helper that looks
// like any other process that cannot be held.
func holdPatiently(h *Helper, pid int) (release func() error, err error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if release, err = h.Hold(pid); !errors.Is(err, ErrUnsupported) {
			break
		}
	}
	return release, err
}

// TestHold stops a process with busy threads, looks that none of them runs, and
// lets it go.
func TestHold(t *testing.T) {
	h, err := StartHelper()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	s := subject.Start(t, "busy")
	s.Hear()
	for range 20 {
		release, err := holdPatiently(h, s.PID)
		if err != nil {
			t.Fatal(err)
		}
		tids, err := proc.Threads(s.PID)
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if state := stateOf(t, tid); state != "t" {
				t.Errorf("thread %d of %d is in state %s while the process is held", tid, len(tids), state)
			}
		}
		if err := release(); err != nil {
			t.Fatal(err)
		}
		var sleeps, turns, laterSleeps, laterTurns int64
		s.Scan(s.Ask("count"), &sleeps, &turns)
		for deadline := time.Now().Add(10 * time.Second); laterSleeps <= sleeps || laterTurns <= turns; {
			if time.Now().After(deadline) {
				t.Fatalf("the threads stand still: %d sleeps, %d turns", laterSleeps, laterTurns)
			}
			s.Scan(s.Ask("count"), &laterSleeps, &laterTurns)
		}
	}
	if task, err := proc.ReadTask(s.PID); err != nil || task.TracerPID != 0 {
		t.Errorf("the process is still traced: %+v %v", task, err)
	}
}

// stateOf is the state of a thread as /proc has it: t is stopped by a tracer.
func stateOf(t *testing.T, tid int) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))[0]
}

// TestAHoldEndsWithStasis kills the helper, which is what the end of Stasis comes
// to.
func TestAHoldEndsWithStasis(t *testing.T) {
	h, err := StartHelper()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	s := subject.Start(t, "busy")
	s.Hear()
	release, err := holdPatiently(h, s.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	s.Ask("count") // it runs again
	if err := release(); err == nil {
		t.Error("the hold was lost, and its end is no error")
	}
}

func TestHoldOfProcessesThatCannotBeHeld(t *testing.T) {
	h, err := StartHelper()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	other, err := StartHelper()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s := subject.Start(t, "busy")
	s.Hear()
	release, err := holdPatiently(other, s.PID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Hold(s.PID); !errors.Is(err, ErrUnsupported) {
		t.Errorf("of a process that is traced: %v", err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if release, err = holdPatiently(h, s.PID); err != nil {
		t.Errorf("when the other has let it go: %v", err)
	} else if err := release(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		release, err := h.Hold(s.PID)
		if errors.Is(err, proc.ErrGone) {
			break
		}
		if err == nil {
			_ = release() // it was faster than the signal
		}
		if time.Now().After(deadline) {
			t.Fatalf("of a process that is gone: %v", err)
		}
	}
}
