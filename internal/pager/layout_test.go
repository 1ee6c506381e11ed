//go:build linux && (amd64 || arm64)

package pager

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// model is a layout in the simplest form: page of the task → page of the checkpoint.
type model map[uint64]uint64

func (m model) cut(start, end uint64) {
	for a := start; a < end; a++ {
		delete(m, a)
	}
}

func (m model) remap(start, end, to uint64) {
	moving := model{}
	for a := start; a < end; a++ {
		if s, ok := m[a]; ok {
			moving[a-start+to] = s
		}
	}
	m.cut(start, end)
	m.cut(to, to+end-start)
	maps.Copy(m, moving)
}

func (l *layout) model() model {
	m := model{}
	for _, s := range l.places {
		for a := s.start; a < s.end; a++ {
			m[a] = s.to + a - s.start
		}
	}
	return m
}

func check(t *testing.T, l *layout, want model) {
	t.Helper()
	if got := l.model(); !maps.Equal(got, want) {
		t.Fatalf("layout has %v, want %v", got, want)
	}
	for name, list := range map[string]spans{"places": l.places, "sources": l.sources} {
		for i, s := range list {
			if s.start >= s.end || i > 0 && s.start < list[i-1].end {
				t.Fatalf("%s out of order: %v", name, list)
			}
		}
	}
	back := 0
	for _, s := range l.sources {
		for a := s.start; a < s.end; a++ {
			if want[s.to+a-s.start] != a {
				t.Fatalf("source %d is said to be at %d, and is not", a, s.to+a-s.start)
			}
			back++
		}
	}
	if back != len(want) {
		t.Fatalf("%d sources for %d places", back, len(want))
	}
}

// One thread's changes, announced as the kernel does, keep the layout equal to
// the model, whatever they are.
func TestLayoutFollowsOneThread(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var l layout
		m := model{}
		for a := uint64(10); a < 100; a += 10 {
			n := 1 + r.Uint64N(10)
			l.insert(span{a, a + n, a})
			for i := range n {
				m[a+i] = a + i
			}
		}
		for range 60 {
			start := r.Uint64N(120)
			end := start + 1 + r.Uint64N(30)
			switch r.IntN(4) {
			case 0:
				l.remove(start, end)
				m.cut(start, end)
			case 1:
				l.unmap(start, end)
				m.cut(start, end)
			default:
				to := r.Uint64N(200)
				if to < end && start < to+end-start {
					continue // the kernel refuses a move onto itself
				}
				l.unmap(to, to+end-start) // MREMAP_FIXED unmaps first
				if back := l.remap(start, end, to); len(back) > 0 {
					t.Fatalf("ghosts in one thread's changes: %v", back)
				}
				l.unmap(start, end)
				m.remap(start, end, to)
			}
			check(t, &l, m)
		}
		if len(l.owed) > 0 || len(l.ghosts) > 0 {
			t.Fatalf("left over: owed %v, ghosts %v", l.owed, l.ghosts)
		}
	}
}

func TestLayoutInTheOrdersThatThreadsMeet(t *testing.T) {
	// A moves [10,20) to 50, B moves [30,40) to 10, where A's memory was.
	want := model{}
	for i := range uint64(10) {
		want[50+i], want[10+i] = 10+i, 30+i
	}
	aMoves := func(l *layout) []span { return l.remap(10, 20, 50) }
	bMoves := func(l *layout) []span { return l.remap(30, 40, 10) }
	aUnmaps := func(l *layout) []span { l.unmap(10, 20); return nil }
	bUnmaps := func(l *layout) []span { l.unmap(30, 40); return nil }
	type step = func(*layout) []span
	for name, c := range map[string]struct {
		order []step
		back  []span // sources to look at again
	}{
		"as it happened":       {[]step{aMoves, aUnmaps, bMoves, bUnmaps}, nil},
		"unmapping told late":  {[]step{aMoves, bMoves, aUnmaps, bUnmaps}, nil},
		"later still":          {[]step{aMoves, bMoves, bUnmaps, aUnmaps}, nil},
		"moves in wrong order": {[]step{bMoves, aMoves, aUnmaps, bUnmaps}, []span{{10, 20, 10}}},
		"all in wrong order":   {[]step{bMoves, bUnmaps, aMoves, aUnmaps}, []span{{10, 20, 10}}},
	} {
		t.Run(name, func(t *testing.T) {
			var l layout
			l.insert(span{10, 20, 10})
			l.insert(span{30, 40, 30})
			var back []span
			for _, s := range c.order {
				back = append(back, s(&l)...)
			}
			check(t, &l, want)
			if len(l.owed) > 0 || len(l.ghosts) > 0 {
				t.Fatalf("left over: owed %v, ghosts %v", l.owed, l.ghosts)
			}
			if !slices.Equal(back, c.back) {
				t.Fatalf("to look at again: %v, want %v", back, c.back)
			}
		})
	}
}

// A unmaps [10,20) and B moves [30,40) there; B is announced first.
func TestLayoutWithALateUnmap(t *testing.T) {
	var l layout
	l.insert(span{10, 20, 10})
	l.insert(span{30, 40, 30})
	l.remap(30, 40, 10)
	l.unmap(30, 40)
	l.unmap(10, 20)
	want := model{}
	for i := range uint64(10) {
		want[10+i] = 30 + i
	}
	check(t, &l, want)
}

// With MREMAP_DONTUNMAP the old range stays mapped and its unmapping is not
// announced. A later one must not be taken for that.
func TestLayoutAfterDontUnmap(t *testing.T) {
	for name, leave := range map[string]func(*layout){
		"unmapped":        func(l *layout) { l.unmap(10, 20) },
		"unmapped partly": func(l *layout) { l.unmap(12, 30) },
		"moved":           func(l *layout) { l.remap(10, 20, 300); l.unmap(10, 20) },
	} {
		t.Run(name, func(t *testing.T) {
			var l layout
			l.insert(span{10, 20, 10})
			l.insert(span{40, 50, 40})
			l.remap(10, 20, 100) // MREMAP_DONTUNMAP
			leave(&l)
			l.remap(40, 50, 10)
			l.unmap(40, 50)
			l.unmap(10, 20)
			want := model{}
			for i := range uint64(10) {
				want[100+i] = 10 + i
			}
			check(t, &l, want)
		})
	}
}
