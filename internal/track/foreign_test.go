package track

import (
	"errors"
	"os"
	"slices"
	"testing"

	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/subject"
)

// newcomer is a subject whose memory one tracker has gone a round over, and
// another tracker for the same process.
type newcomer struct {
	s           *subject.Subject
	base        uint64
	first, late *WriteProtect
}

func newNewcomer(t *testing.T) *newcomer {
	t.Helper()
	available(t, KindUserfaultfd)
	if layout, err := proc.OpenLayout(os.Getpid()); err == nil {
		_, err = layout.At(0)
		layout.Close()
		if errors.Is(err, proc.ErrNoQuery) {
			require.Missing(t, "PROCMAP_QUERY", "%v", err)
		}
	}
	n := &newcomer{s: subject.Start(t, "memory")}
	n.s.Scan(n.s.Hear(), &n.base)
	for _, w := range []**WriteProtect{&n.first, &n.late} {
		var err error
		if *w, err = NewWriteProtect(n.s.PID); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*w).Close() })
	}
	n.s.Ask("fill 16")
	if got := written(t, n.first, n.s.PID, n.base); len(got) != 16 {
		t.Fatalf("the first round finds %v", brief(got))
	}
	return n
}

// changed lists the pages that a tracker cannot say to be unchanged.
func (n *newcomer) changed(t *testing.T, w *WriteProtect) map[int]bool {
	t.Helper()
	found := map[int]bool{}
	err := w.Look([]proc.Range{{Start: n.base, End: n.base + pages*proc.PageSize}}, func(r proc.Run, changed bool) {
		for at := r.Start; changed && at < r.End; at += proc.PageSize {
			found[int((at-n.base)/proc.PageSize)] = true
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestAnotherTrackerBetweenRounds: the program maps new memory where a tracker
// has watched, and a tracker of somebody else is there first. It protects what
// was written, so that the kernel calls it unwritten.
func TestAnotherTrackerBetweenRounds(t *testing.T) {
	n := newNewcomer(t)
	n.s.Ask("remap")
	n.s.Ask("write 3")
	if got := written(t, n.late, n.s.PID, n.base); len(got) != 1 {
		t.Fatalf("the other tracker found %v", got)
	}
	// At the freeze, with no round in between.
	if got := n.changed(t, n.first); !got[3] {
		t.Errorf("at the freeze the first tracker calls %v changed, without page 3", got)
	}
	// In a round, and at the freeze after it.
	if got := written(t, n.first, n.s.PID, n.base); len(got) != 0 || n.first.Foreign() == 0 {
		t.Errorf("the first tracker found %v, and says that %d bytes are another one's", got, n.first.Foreign())
	}
	if got := n.changed(t, n.first); !got[3] {
		t.Errorf("after a round the first tracker calls %v changed, without page 3", got)
	}
	// The other one is left alone: it sees what is written.
	if err := n.first.Rearm([]proc.Range{{Start: n.base, End: n.base + pages*proc.PageSize}}); err != nil {
		t.Fatal(err)
	}
	n.s.Ask("write 4")
	if got := written(t, n.late, n.s.PID, n.base); len(got) != 1 || !got[4] {
		t.Errorf("the other tracker found %v, written was page 4", got)
	}
	// When it has gone, the first takes over, and then nothing is lost or copied twice.
	n.late.Close()
	if got := written(t, n.first, n.s.PID, n.base); !got[3] || !got[4] || n.first.Foreign() != 0 {
		t.Errorf("after the other one the first tracker found %v, and says that %d bytes are another one's", got, n.first.Foreign())
	}
	n.s.Ask("write 5")
	if got := n.changed(t, n.first); len(got) != 1 || !got[5] {
		t.Errorf("the first tracker calls %v changed, written was page 5", got)
	}
}

// TestAnotherTrackerInTheMiddle: of a mapping that the first one watched as a
// whole, the other one has a page.
func TestAnotherTrackerInTheMiddle(t *testing.T) {
	n := newNewcomer(t)
	n.s.Ask("remappage 5")
	n.s.Ask("write 5")
	var maps []proc.Mapping
	for _, m := range mappingsOf(t, n.s.PID, n.base) {
		if at := n.base + 5*proc.PageSize; m.Start <= at && at < m.End {
			maps = append(maps, m)
		}
	}
	if err := n.late.Round(maps, func(proc.Run) {}); err != nil || n.late.Foreign() != 0 {
		t.Fatalf("the other tracker: %v, %d bytes are another one's", err, n.late.Foreign())
	}
	got := n.changed(t, n.first)
	if !got[5] {
		t.Errorf("the first tracker calls %v changed, without page 5", got)
	}
	if got[1] || got[9] {
		t.Errorf("the first tracker calls %v changed, with pages that it watches", got)
	}
	// What the other one has is not protected for the next round.
	n.s.Ask("write 5")
	if err := n.first.Rearm([]proc.Range{{Start: n.base, End: n.base + pages*proc.PageSize}}); err != nil {
		t.Fatal(err)
	}
	found := 0
	if err := n.late.Round(maps, func(proc.Run) { found++ }); err != nil || found != 1 {
		t.Errorf("the other tracker found %d runs of pages, should find the one with page 5 (%v)", found, err)
	}
}

func TestCut(t *testing.T) {
	type part struct {
		start, end uint64
		inside     bool
	}
	for _, c := range []struct {
		ranges []proc.Range
		want   []part
	}{
		{nil, []part{{10, 20, false}}},
		{[]proc.Range{{Start: 0, End: 10}, {Start: 20, End: 30}}, []part{{10, 20, false}}},
		{[]proc.Range{{Start: 0, End: 30}}, []part{{10, 20, true}}},
		{[]proc.Range{{Start: 5, End: 12}, {Start: 14, End: 15}, {Start: 15, End: 16}, {Start: 19, End: 25}},
			[]part{{10, 12, true}, {12, 14, false}, {14, 15, true}, {15, 16, true}, {16, 19, false}, {19, 20, true}}},
	} {
		var got []part
		cut(proc.Run{Range: proc.Range{Start: 10, End: 20}}, c.ranges, func(p proc.Run, inside bool) {
			got = append(got, part{p.Start, p.End, inside})
		})
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.ranges, got, c.want)
		}
	}
}
