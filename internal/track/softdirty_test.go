package track

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/inject"
	"stasis/internal/proc"
)

func duplicate(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

func softDirty(s *scene) *SoftDirty { return s.tracker.(*SoftDirty) }

// waitIdle waits until a program that has answered waits for the next order. On its way there it writes to its stack, of which the last page is
// the only one that a static program can be told a clearing by; with a short environment the two meet.
func waitIdle(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; <-time.After(time.Millisecond) {
		task, err := proc.ReadTask(pid)
		if err != nil {
			t.Fatal(err)
		}
		if task.State == 'S' {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not wait, it is in state %c", pid, task.State)
		}
	}
}

// TestAnotherClearingIsNoticed clears the bits as CRIU does with --track-mem.
func TestAnotherClearingIsNoticed(t *testing.T) {
	s := newScene(t, "memory", KindSoftDirty)
	s.fill(1)
	s.round()
	s.Ask("write 3")
	waitIdle(t, s.PID)
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.PID), []byte("4"), 0); err != nil {
		t.Fatal(err)
	}
	if got := s.changed(); len(got) != pagesInTable {
		t.Errorf("%d pages count as written, want all %d", len(got), pagesInTable)
	}
	if doubt := softDirty(s).Doubt(); !strings.Contains(doubt, "another program") {
		t.Errorf("the reason is %q", doubt)
	}
	if got := s.round(); len(got) != pagesInTable {
		t.Errorf("the round found %d pages, want all %d", len(got), pagesInTable)
	}
	if got := s.round(); len(got) != 0 {
		t.Errorf("the round after found %s", brief(got))
	}
}

// TestMemoryThatWasNotLookedAtCountsAsWritten leaves a part out of one round,
// in which its bits are cleared all the same.
func TestMemoryThatWasNotLookedAtCountsAsWritten(t *testing.T) {
	s := newScene(t, "memory", KindSoftDirty)
	s.fill(2)
	s.round()
	s.Ask("write 3")
	part := proc.Mapping{Range: proc.Range{Start: s.base + tableBytes, End: s.arena().End}}
	if err := s.tracker.Round([]proc.Mapping{part}, func(proc.Run) {}); err != nil {
		t.Fatal(err)
	}
	got := s.round()
	if len(got) != pagesInTable || !got[3] {
		t.Errorf("%d pages, want the %d that were left out", len(got), pagesInTable)
	}
}

// brokenHold cannot stop the process, or loses it.
type brokenHold struct{ hold, release error }

func (b brokenHold) Hold(int) (func() error, error) {
	return func() error { return b.release }, b.hold
}

func TestAProcessThatCannotBeStopped(t *testing.T) {
	s := newScene(t, "memory", KindSoftDirty)
	s.fill(1)
	s.round()
	works := softDirty(s).hold
	softDirty(s).hold = brokenHold{hold: fmt.Errorf("thread 3: %w", inject.ErrUnsupported)}
	s.Ask("write 3")
	for range 2 { // and again, because the bits are left alone
		if got := s.round(); len(got) != 1 || !got[3] {
			t.Errorf("%s counts as written, want page 3", brief(got))
		}
	}
	softDirty(s).hold = works
	s.Ask("write 4")
	if got := s.round(); len(got) != 2 || !got[3] || !got[4] {
		t.Errorf("%s counts as written, want pages 3 and 4", brief(got))
	}
}

func TestAHoldThatWasLost(t *testing.T) {
	s := newScene(t, "memory", KindSoftDirty)
	s.fill(1)
	s.round()
	works := softDirty(s).hold
	softDirty(s).hold = brokenHold{release: errors.New("the helper has ended")}
	if err := s.tracker.Round(nil, func(proc.Run) {}); err == nil {
		t.Error("no error")
	}
	softDirty(s).hold = works
	if got := s.round(); len(got) != pagesInTable {
		t.Errorf("%d pages count as written, want all %d", len(got), pagesInTable)
	}
}

// TestMemoryThatIsShared gives the address space a second process: the bits are
// left alone as long as it is there.
func TestMemoryThatIsShared(t *testing.T) {
	s := newScene(t, "memory", KindSoftDirty)
	alone, err := aloneWithMemory(s.PID)
	if err != nil || !alone {
		t.Errorf("a process of its own: %t, %v", alone, err)
	}
	if same, err := proc.SameMemory(s.PID, s.PID); err != nil || !same {
		t.Errorf("a process and itself: %t, %v", same, err)
	}
	s.Ask("spawn") // forked and executed: memory of its own
	if alone, err = aloneWithMemory(s.PID); err != nil || !alone {
		t.Errorf("with a child that has executed a program: %t, %v", alone, err)
	}
}

func TestTornStatesAreRefused(t *testing.T) {
	s := newScene(t, "memory", KindSoftDirty)
	if fd := s.tracker.Fd(); fd >= 0 {
		t.Error("a tracker without a round leaves something to keep")
	}
	s.fill(1)
	s.round()
	size := fileSize(t, s.tracker.Fd())
	for _, end := range []int64{0, 1, size / 2, size - 1} {
		fd, err := duplicate(s.tracker.Fd())
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, end); err != nil {
			t.Fatal(err)
		}
		if _, err := AdoptSoftDirty(s.helper, s.PID, fd); err == nil {
			t.Errorf("%d of %d bytes are taken up", end, size)
		}
	}
	fd, err := duplicate(s.tracker.Fd())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AdoptSoftDirty(s.helper, os.Getpid(), fd); err == nil {
		t.Error("the state of another process is taken up")
	}
}

func fileSize(t *testing.T, fd int) int64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Size
}
