package track

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"stasis/internal/inject"
	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/subject"
)

// available skips a test on kernels that lack what it is about.
func available(t *testing.T, kind Kind) {
	t.Helper()
	require.Root(t)
	switch kind {
	case KindUserfaultfd:
		if err := Available(); err != nil {
			require.Missing(t, "WP_ASYNC", "%v", err)
		}
	case KindSoftDirty:
		if err := SoftDirtyAvailable(); err != nil {
			require.Missing(t, "soft-dirty", "%v; make test-kernels runs this on a kernel that has it", err)
		}
	}
}

// scene is a subject with a tracker.
type scene struct {
	*subject.Subject
	t       *testing.T
	base    uint64
	helper  *inject.Helper
	tracker Tracker
}

func newScene(t *testing.T, role string, kind Kind) *scene {
	t.Helper()
	available(t, kind)
	s := &scene{Subject: subject.Start(t, role), t: t}
	s.Scan(s.Hear(), &s.base)
	var err error
	if s.helper, err = inject.StartHelper(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.helper.Close() })
	if s.tracker, err = Start(kind, s.helper, s.PID); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.tracker.Close() })
	s.bePatient()
	return s
}

// bePatient makes a tracker try for longer to stop the process: emulated CPUs
// are slow, and what is expected of a round is exact.
func (s *scene) bePatient() {
	if tracker, ok := s.tracker.(*SoftDirty); ok {
		tracker.hold = patient{s.helper}
	}
}

type patient struct{ Holder }

func (p patient) Hold(pid int) (release func() error, err error) {
	for range 100 {
		if release, err = p.Holder.Hold(pid); !errors.Is(err, inject.ErrUnsupported) {
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	return release, err
}

func (s *scene) arena() proc.Range {
	return proc.Range{Start: s.base, End: s.base + pages*proc.PageSize}
}

// round runs a round and returns the numbers of the pages that it found.
func (s *scene) round() map[int]bool {
	s.t.Helper()
	return written(s.t, s.tracker, s.PID, s.base)
}

// fill writes to all pages of the first n tables.
func (s *scene) fill(n int) {
	s.t.Helper()
	s.Ask(fmt.Sprintf("fill %d", n*pagesInTable))
}

// changed are the numbers of the pages that a look takes for written.
func (s *scene) changed() map[int]bool {
	s.t.Helper()
	found := map[int]bool{}
	err := s.tracker.Look([]proc.Range{s.arena()}, func(r proc.Run, changed bool) {
		for at := r.Start; at < r.End && changed; at += proc.PageSize {
			found[int((at-s.base)/proc.PageSize)] = true
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

// unwritten are the numbers of the pages that were not written since the last
// round of an earlier command.
func (s *scene) unwritten() map[int]bool {
	s.t.Helper()
	found := map[int]bool{}
	err := Unwritten(s.tracker, []proc.Range{s.arena()}, func(r proc.Range) {
		for at := r.Start; at < r.End; at += proc.PageSize {
			found[int((at-s.base)/proc.PageSize)] = true
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

// brief lists some pages, or says how many there are.
func brief(pages map[int]bool) string {
	if len(pages) > 10 {
		return fmt.Sprintf("%d pages", len(pages))
	}
	return fmt.Sprint(slices.Sorted(maps.Keys(pages)))
}

var trackers = []Kind{KindUserfaultfd, KindSoftDirty, KindNone}

// TestRoundsFindWhatWasWritten compares many rounds of random writes, drops and
// reads with what the subject was told to do.
func TestRoundsFindWhatWasWritten(t *testing.T) {
	for _, kind := range trackers {
		t.Run(string(kind), func(t *testing.T) {
			s := newScene(t, "memory", kind)
			s.fill(2)
			s.round()
			random := rand.New(rand.NewPCG(1, 2))
			wanted, found := 0, 0
			zeros := map[int]bool{} // which soft-dirty takes for written in each round
			for round := range 50 {
				want := map[int]bool{}
				for range random.IntN(40) {
					n := random.IntN(2 * pagesInTable)
					switch random.IntN(5) {
					case 0:
						s.Ask(fmt.Sprintf("drop %d", n))
						delete(want, n)
						delete(zeros, n)
					case 1:
						s.Ask(fmt.Sprintf("drop %d", n))
						s.Ask(fmt.Sprintf("read %d", n))
						want[n], zeros[n] = true, true
					case 2:
						s.Ask(fmt.Sprintf("protect %d", n))
						s.Ask(fmt.Sprintf("write %d", n))
						want[n] = true
						delete(zeros, n)
					default:
						s.Ask(fmt.Sprintf("write %d", n))
						want[n] = true
						delete(zeros, n)
					}
				}
				for name, got := range map[string]map[int]bool{"a look": s.changed(), "the round": s.round()} {
					for n := range want {
						if !got[n] {
							t.Fatalf("%s after %d rounds missed page %d", name, round, n)
						}
					}
					if kind == KindSoftDirty {
						maps.DeleteFunc(got, func(n int, _ bool) bool { return zeros[n] && !want[n] })
					}
					wanted, found = wanted+len(want), found+len(got)
				}
			}
			t.Logf("%d pages found, %d written", found, wanted)
			// Soft-dirty counts more than was written where it does not know a page
			// table again; not much more.
			if kind == KindUserfaultfd && found != wanted || kind == KindSoftDirty && found > wanted*3/2 {
				t.Errorf("%d pages found, %d written", found, wanted)
			}
			if most := 50 * 2 * pagesInTable; kind == KindNone && found < most {
				t.Errorf("%d pages found, which is less than all", found)
			}
		})
	}
}

func TestANewMappingAtTheSamePlaceCountsAsWritten(t *testing.T) {
	for _, kind := range trackers {
		t.Run(string(kind), func(t *testing.T) {
			s := newScene(t, "memory", kind)
			s.Ask("write 1")
			s.round()
			s.Ask("remap")
			s.Ask("write 2")
			if got := s.round(); len(got) != 1 || !got[2] {
				t.Errorf("after the new mapping %s, want page 2", brief(got))
			}
		})
	}
}

// TestMovedPagesCountAsWritten moves a whole page table, which the kernel does
// without touching the pages, and a single page.
func TestMovedPagesCountAsWritten(t *testing.T) {
	for _, kind := range trackers {
		t.Run(string(kind), func(t *testing.T) {
			s := newScene(t, "memory", kind)
			s.fill(4)
			s.round()
			s.round()
			s.Ask("movetable 1 3")
			s.Ask(fmt.Sprintf("movepage 5 %d", 2*pagesInTable+9))
			got := s.round()
			for n := 3 * pagesInTable; n < 4*pagesInTable; n++ {
				if !got[n] {
					t.Fatalf("page %d has been moved there with its table, and was missed", n)
				}
			}
			if !got[2*pagesInTable+9] {
				t.Error("a page that was moved was missed")
			}
			if again := s.round(); kind != KindNone && len(again) > 0 {
				t.Errorf("the round after found %d pages", len(again))
			}
		})
	}
}

// TestRoundsOfABusyProcess copies what each round finds, as a dump does, while
// several threads write, drop and move pages. What the last look calls unchanged
// must be in the copy as it is.
func TestRoundsOfABusyProcess(t *testing.T) {
	for _, kind := range trackers {
		t.Run(string(kind), func(t *testing.T) {
			rested := 0
			for again := range 5 {
				role := "busy"
				if kind == KindSoftDirty && SoftDirtyComplete() != nil {
					role = "busy without mprotect"
				}
				s := newScene(t, role, kind)
				memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", s.PID))
				if err != nil {
					t.Fatal(err)
				}
				defer memory.Close()
				copied := make([]byte, pages*proc.PageSize)
				take := func(r proc.Range) {
					r = proc.Range{Start: max(r.Start, s.base), End: min(r.End, s.arena().End)}
					if r.Start >= r.End {
						return
					}
					at := copied[r.Start-s.base : r.End-s.base]
					for from := 0; from < len(at); from += proc.PageSize {
						// A page that is gone fails, and is not there at the end or written by then.
						_, _ = memory.ReadAt(at[from:from+proc.PageSize], int64(r.Start)+int64(from))
					}
				}
				for range 10 {
					if err := s.tracker.Round(mappingsOf(t, s.PID, s.base), func(r proc.Run) { take(r.Range) }); err != nil {
						t.Fatal(err)
					}
					<-time.After(time.Millisecond) // for the writers
				}
				s.Ask("stop")
				unchanged := 0
				err = s.tracker.Look([]proc.Range{s.arena()}, func(r proc.Run, changed bool) {
					if changed {
						return
					}
					now := make([]byte, r.Len())
					if _, err := memory.ReadAt(now, int64(r.Start)); err != nil {
						t.Fatal(err)
					}
					unchanged += len(now) / proc.PageSize
					for from := 0; from < len(now); from += proc.PageSize {
						have := copied[int(r.Start-s.base)+from:][:proc.PageSize]
						if !bytes.Equal(now[from:from+proc.PageSize], have) {
							t.Fatalf("run %d: page %#x counts as unchanged, and is not", again, r.Start+uint64(from))
						}
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("run %d: %d of %d pages unchanged in the last round", again, unchanged, pages)
				rested += unchanged
			}
			if kind != KindNone && rested == 0 {
				t.Error("no page was unchanged, so that nothing has been shown")
			}
		})
	}
}

func TestExecCountsAsWritten(t *testing.T) {
	for _, kind := range trackers {
		t.Run(string(kind), func(t *testing.T) {
			s := newScene(t, "memory", kind)
			s.fill(1)
			s.round()
			s.Scan(s.Ask("exec"), &s.base)
			s.fill(1)
			if got := s.changed(); len(got) < pagesInTable {
				t.Errorf("after exec %d pages count as written, want %d", len(got), pagesInTable)
			}
		})
	}
}

// TestATrackerIsTakenUp does what two commands in a row do.
func TestATrackerIsTakenUp(t *testing.T) {
	for _, kind := range []Kind{KindUserfaultfd, KindSoftDirty} {
		t.Run(string(kind), func(t *testing.T) {
			s := newScene(t, "memory", kind)
			s.fill(2)
			s.round()
			s.takeUp(kind)
			if !s.tracker.Follows([]proc.Mapping{{Range: s.arena()}}) {
				t.Fatal("the tracker does not follow the process")
			}
			s.Ask("write 7")
			if got := s.unwritten(); len(got) != 2*pagesInTable-1 || got[7] {
				t.Errorf("%d pages count as unchanged, page 7: %t; want all others", len(got), got[7])
			}
			if got := s.round(); len(got) != 1 || !got[7] {
				t.Errorf("%s count as written, want page 7", brief(got))
			}
			s.Ask("write 9")
			if err := s.tracker.Rearm([]proc.Range{s.arena()}); err != nil {
				t.Fatal(err)
			}
			s.takeUp(kind)
			s.Ask("write 8")
			if got := s.round(); len(got) != 1 || !got[8] {
				t.Errorf("after Rearm %s count as written, want page 8", brief(got))
			}
		})
	}
}

// TestRearmAfterALook: what the look has found is protected again, and what was
// written since then is not taken for known.
func TestRearmAfterALook(t *testing.T) {
	for _, kind := range []Kind{KindUserfaultfd, KindSoftDirty} {
		t.Run(string(kind), func(t *testing.T) {
			s := newScene(t, "memory", kind)
			s.fill(2)
			s.round()
			for _, page := range []int{3, 5, 2 * gapPages, 2*pagesInTable - 1} { // with gaps short and long
				s.Ask(fmt.Sprintf("write %d", page))
			}
			changed := 0
			err := s.tracker.Look([]proc.Range{s.arena()}, func(r proc.Run, written bool) {
				if written {
					changed += int(r.Len() / proc.PageSize)
				}
			})
			if err != nil || changed != 4 {
				t.Fatalf("a look finds %d written pages, %v", changed, err)
			}
			if kind == KindUserfaultfd {
				s.Ask("write 9") // soft-dirty bits are read once more by Rearm
			}
			if err := s.tracker.Rearm([]proc.Range{s.arena()}); err != nil {
				t.Fatal(err)
			}
			s.takeUp(kind)
			s.Ask("write 8")
			want := map[int]bool{8: true, 9: kind == KindUserfaultfd}
			got := s.round()
			for page := range 2 * pagesInTable {
				if got[page] && !want[page] && (page < 3 || page > 5+gapPages) || want[page] && !got[page] {
					t.Errorf("page %d counts as written: %t", page, got[page])
				}
			}
		})
	}
}

// takeUp replaces the tracker by one that is made from what the first leaves.
func (s *scene) takeUp(kind Kind) {
	s.t.Helper()
	fd, err := duplicate(s.tracker.Fd())
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.tracker.Close(); err != nil {
		s.t.Fatal(err)
	}
	if s.tracker, err = Resume(kind, s.helper, s.PID, fd); err != nil {
		s.t.Fatal(err)
	}
	s.bePatient()
}

func TestChoose(t *testing.T) {
	yes := func() error { return nil }
	no := func() error { return fmt.Errorf("%w: the kernel is old", ErrUnavailable) }
	for _, c := range []struct {
		asked                     Kind
		userfaultfd, sd, complete func() error
		want                      Kind
	}{
		{KindAuto, yes, yes, yes, KindUserfaultfd}, {"", yes, no, no, KindUserfaultfd},
		{KindAuto, no, yes, yes, KindSoftDirty}, {KindAuto, no, yes, no, KindNone}, {KindAuto, no, no, no, KindNone},
		{KindUserfaultfd, yes, no, no, KindUserfaultfd}, {KindSoftDirty, yes, yes, yes, KindSoftDirty},
		{KindSoftDirty, no, yes, no, KindSoftDirty}, {KindNone, yes, yes, yes, KindNone},
	} {
		if got, err := choose(c.asked, c.userfaultfd, c.sd, c.complete); got != c.want || err != nil {
			t.Errorf("%q with %v and %v: %q, %v; want %q", c.asked, c.userfaultfd(), c.sd(), got, err, c.want)
		}
	}
	for _, kind := range []Kind{KindUserfaultfd, KindSoftDirty} {
		if _, err := choose(kind, no, no, no); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "the kernel is old") {
			t.Errorf("%s where it cannot be had: %v", kind, err)
		}
	}
	if _, err := choose("dirty", yes, yes, yes); err == nil || !strings.Contains(err.Error(), "soft-dirty") {
		t.Errorf("an unknown tracker: %v", err)
	}
}

// TestTheTrial runs the real trials: of this kernel it is known by other means
// what it has, where its configuration can be read.
func TestTheTrial(t *testing.T) {
	require.Root(t)
	err := SoftDirtyAvailable()
	t.Logf("soft-dirty: %v", err)
	t.Logf("soft-dirty in all cases: %v", SoftDirtyComplete())
	t.Logf("userfaultfd: %v", Available())
	if err != nil && !errors.Is(err, ErrUnavailable) {
		t.Errorf("no reason to use another tracker: %v", err)
	}
	if !proc.CanScan() && Available() == nil {
		t.Error("a kernel without PAGEMAP_SCAN tracks with userfaultfd")
	}
}
