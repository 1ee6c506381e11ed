package track

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/subject"
)

func TestMain(m *testing.M) {
	subject.Main(m, map[string]subject.Role{"memory": memory})
}

const pages = 4096

// memory maps some pages and does with them what it is told:
// "write N", "drop N" (MADV_DONTNEED), "remap" (unmap and map anew).
func memory(say func(string, ...any), hear func() (string, bool)) {
	mapAt := func(at uintptr, flags int) uintptr {
		addr, _, errno := unix.Syscall6(unix.SYS_MMAP, at, pages*proc.PageSize, unix.PROT_READ|unix.PROT_WRITE,
			uintptr(unix.MAP_PRIVATE|unix.MAP_ANON|flags), ^uintptr(0), 0)
		if errno != 0 {
			panic(errno)
		}
		return addr
	}
	base := mapAt(0, 0)
	page := func(n int) *byte {
		return (*byte)(unsafe.Add(*(*unsafe.Pointer)(unsafe.Pointer(&base)), n*proc.PageSize))
	}
	say("%d", base)
	for {
		order, ok := hear()
		if !ok {
			return
		}
		var n int
		switch {
		case strings.HasPrefix(order, "write"):
			fmt.Sscanf(order, "write %d", &n)
			*page(n)++
		case strings.HasPrefix(order, "drop"):
			fmt.Sscanf(order, "drop %d", &n)
			unix.Madvise(unsafe.Slice(page(n), proc.PageSize), unix.MADV_DONTNEED)
		case order == "remap":
			mapAt(base, unix.MAP_FIXED)
		}
		say("done")
	}
}

// written runs a round and returns the numbers of the pages that it found.
func written(t *testing.T, w *WriteProtect, base uint64) map[int]bool {
	t.Helper()
	found := map[int]bool{}
	mapping := proc.Mapping{Range: proc.Range{Start: base, End: base + pages*proc.PageSize}}
	err := w.Round([]proc.Mapping{mapping}, func(r proc.Run) {
		for at := r.Start; at < r.End; at += proc.PageSize {
			found[int((at-base)/proc.PageSize)] = true
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRoundsFindWhatWasWritten compares many rounds of random writes and drops
// with what the subject was told to do.
func TestRoundsFindWhatWasWritten(t *testing.T) {
	s := subject.Start(t, "memory")
	var base uint64
	s.Scan(s.Hear(), &base)
	w, err := NewWriteProtect(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 50 {
		want := map[int]bool{}
		for range random.IntN(40) {
			n := random.IntN(pages)
			if random.IntN(4) == 0 {
				s.Ask(fmt.Sprintf("drop %d", n))
				delete(want, n)
			} else {
				s.Ask(fmt.Sprintf("write %d", n))
				want[n] = true
			}
		}
		if got := written(t, w, base); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("round %d found %v, written were %v", round, got, want)
		}
	}
}

func TestANewMappingAtTheSamePlaceCountsAsWritten(t *testing.T) {
	s := subject.Start(t, "memory")
	var base uint64
	s.Scan(s.Hear(), &base)
	w, err := NewWriteProtect(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s.Ask("write 1")
	written(t, w, base)
	s.Ask("remap")
	s.Ask("write 2")
	if got := written(t, w, base); len(got) != 1 || !got[2] {
		t.Errorf("after the new mapping %v, want page 2", got)
	}
}

func TestClosingLeavesNothing(t *testing.T) {
	s := subject.Start(t, "memory")
	var base uint64
	s.Scan(s.Hear(), &base)
	w, err := NewWriteProtect(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	s.Ask("write 7")
	written(t, w, base)
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
	if err := Available(); err != nil {
		t.Fatal(err)
	}
}

// TestTwoTrackers: memory has one tracker. Another one follows nothing of it,
// and takes no knowledge from the first.
func TestTwoTrackers(t *testing.T) {
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
	written(t, first, base)
	s.Ask("write 2")

	second, err := NewWriteProtect(s.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	memory := proc.Range{Start: base, End: base + pages*proc.PageSize}
	if got := written(t, second, base); len(got) != 0 || second.Foreign() != memory.Len() {
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
	if got := written(t, first, base); len(got) != 1 || !got[2] {
		t.Errorf("the first tracker found %v, written was page 2", got)
	}
}
