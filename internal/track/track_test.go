package track

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/subject"
)

func TestMain(m *testing.M) {
	subject.Main(m, map[string]subject.Role{"memory": memory, "mover": mover, "busy": busy(true), "busy without mprotect": busy(false)})
}

// written runs a round over a subject's arena and returns the numbers of the
// pages that it found.
func written(t *testing.T, w Tracker, pid int, base uint64) map[int]bool {
	t.Helper()
	found := map[int]bool{}
	err := w.Round(mappingsOf(t, pid, base), func(r proc.Run) {
		for at := r.Start; at < r.End; at += proc.PageSize {
			found[int((at-base)/proc.PageSize)] = true
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// mappingsOf lists the mappings in an arena as they are now. The first and the
// last can be larger than it.
func mappingsOf(t *testing.T, pid int, base uint64) (list []proc.Mapping) {
	t.Helper()
	maps, err := proc.Maps(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.Start < base+pages*proc.PageSize && m.End > base {
			list = append(list, m)
		}
	}
	return list
}

func TestClosingLeavesNothing(t *testing.T) {
	available(t, KindUserfaultfd)
	s := subject.Start(t, "memory")
	var base uint64
	s.Scan(s.Hear(), &base)
	w, err := NewWriteProtect(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	s.Ask("write 7")
	written(t, w, s.PID, base)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	maps, err := proc.Smaps(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.Has("uw") {
			t.Errorf("mapping %#x is still tracked", m.Start)
		}
	}
}

func TestAProcessThatIsGone(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewWriteProtect(cmd.Process.Pid); !errors.Is(err, proc.ErrGone) {
		t.Errorf("got %v", err)
	}
}

func TestAvailable(t *testing.T) {
	available(t, KindUserfaultfd)
	if err := Available(); err != nil {
		t.Fatal(err)
	}
}

// TestTwoTrackers: memory has one tracker. Another one follows nothing of it,
// and takes no knowledge from the first.
func TestTwoTrackers(t *testing.T) {
	available(t, KindUserfaultfd)
	s := subject.Start(t, "memory")
	var base uint64
	s.Scan(s.Hear(), &base)
	first, err := NewWriteProtect(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	s.Ask("write 1")
	s.Ask("write 2")
	written(t, first, s.PID, base)
	s.Ask("write 2")

	second, err := NewWriteProtect(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	memory := proc.Range{Start: base, End: base + pages*proc.PageSize}
	if got := written(t, second, s.PID, base); len(got) != 0 || second.Foreign() != memory.Len() {
		t.Errorf("the second tracker found %v, and %d of %d bytes are another one's", got, second.Foreign(), memory.Len())
	}
	changed := 0
	err = second.Look([]proc.Range{memory}, func(r proc.Run, isChanged bool) {
		if isChanged {
			changed += int(r.Len() / proc.PageSize)
		}
	})
	if err != nil || changed != 2 {
		t.Errorf("the second tracker counts %d pages as written, should count both that are there (%v)", changed, err)
	}
	if err := second.Rearm([]proc.Range{memory}); err != nil {
		t.Fatal(err)
	}
	if got := written(t, first, s.PID, base); len(got) != 1 || !got[2] {
		t.Errorf("the first tracker found %v, written was page 2", got)
	}
}

// TestAdoptedTrackerKnowsItsOwn: of what is watched when it is taken up.
func TestAdoptedTrackerKnowsItsOwn(t *testing.T) {
	available(t, KindUserfaultfd)
	for _, foreign := range []bool{false, true} {
		t.Run(fmt.Sprintf("foreign=%t", foreign), func(t *testing.T) {
			s := subject.Start(t, "memory")
			var base uint64
			s.Scan(s.Hear(), &base)
			kept, err := NewWriteProtect(s.PID)
			if err != nil {
				t.Fatal(err)
			}
			defer kept.Close()
			s.Ask("write 1")
			s.Ask("write 2")
			if foreign {
				other, err := NewWriteProtect(s.PID)
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				written(t, other, s.PID, base)
			}
			written(t, kept, s.PID, base)
			s.Ask("write 2")
			fd, err := unix.FcntlInt(uintptr(kept.Fd()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			adopted, err := Adopt(s.PID, fd)
			if err != nil {
				t.Fatal(err)
			}
			defer adopted.Close()
			memory := proc.Mapping{Range: proc.Range{Start: base, End: base + pages*proc.PageSize}}
			if follows := adopted.Follows([]proc.Mapping{memory}); follows == foreign {
				t.Errorf("another tracker there: %t; it says that it follows: %t", foreign, follows)
			}
			got := written(t, adopted, s.PID, base)
			if !foreign && (len(got) != 1 || !got[2]) || foreign && len(got) != 0 {
				t.Errorf("another tracker there: %t; it found %v", foreign, got)
			}
			changed := 0
			err = adopted.Look([]proc.Range{memory.Range}, func(r proc.Run, isChanged bool) {
				if isChanged {
					changed += int(r.Len() / proc.PageSize)
				}
			})
			if want := map[bool]int{false: 0, true: 2}[foreign]; err != nil || changed != want {
				t.Errorf("another tracker there: %t; %d pages count as written, should be %d (%v)", foreign, changed, want, err)
			}
		})
	}
}
