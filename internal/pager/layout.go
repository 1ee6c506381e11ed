//go:build linux && (amd64 || arm64)

package pager

import (
	"slices"
	"sort"
)

// span says that the addresses [start, end) correspond to those from to on.
type span struct{ start, end, to uint64 }

func (s span) len() uint64 { return s.end - s.start }

// turned is the span seen from the other side.
func (s span) turned() span { return span{s.to, s.to + s.len(), s.start} }

// shifted is the span moved from an address to another, with what it corresponds to left alone.
func (s span) shifted(from, to uint64) span {
	return span{s.start - from + to, s.end - from + to, s.to}
}

// part is what of s lies in [start, end), which must overlap it.
func (s span) part(start, end uint64) span {
	a, b := max(s.start, start), min(s.end, end)
	return span{a, b, s.to + (a - s.start)}
}

// spans are sorted and do not overlap.
type spans []span

// after is the index of the first span that ends behind addr.
func (l spans) after(addr uint64) int {
	return sort.Search(len(l), func(i int) bool { return l[i].end > addr })
}

// overlaps reports whether anything lies in [start, end).
func (l spans) overlaps(start, end uint64) bool {
	i := l.after(start)
	return i < len(l) && l[i].start < end
}

// at finds what addr corresponds to.
func (l spans) at(addr uint64) (to uint64, ok bool) {
	i := l.after(addr)
	if i == len(l) || l[i].start > addr {
		return 0, false
	}
	return l[i].to + (addr - l[i].start), true
}

// cut takes [start, end) out and returns what was there.
func (l *spans) cut(start, end uint64) []span {
	if start >= end {
		return nil
	}
	first := l.after(start)
	last := first
	var taken, kept []span
	for ; last < len(*l) && (*l)[last].start < end; last++ {
		s := (*l)[last]
		taken = append(taken, s.part(start, end))
		if s.start < start {
			kept = append(kept, s.part(s.start, start))
		}
		if s.end > end {
			kept = append(kept, s.part(end, s.end))
		}
	}
	if taken != nil {
		*l = slices.Replace(*l, first, last, kept...)
	}
	return taken
}

// insert adds a span where nothing is.
func (l *spans) insert(s span) { *l = slices.Insert(*l, l.after(s.start), s) }

// layout says where the pages of the checkpoint are in a task now. Pages stay
// in it when they have been copied; they leave when the program drops them.
//
// The kernel announces changes by several threads in no certain order. Two
// orders that a program does meet are put right here:
//
//   - mremap is announced twice: the move, then the unmapping of the old range,
//     which is *owed*. Between the two another thread's memory can move into
//     that range, and the late unmapping must not drop it.
//   - Memory can be announced to move to where other memory still seems to be.
//     Then that other memory's own departure has yet to be announced: it becomes
//     a *ghost*, and the next departure from there takes the ghost.
//
// Both end when no announcement is outstanding (settle).
type layout struct {
	places  spans // by address in the task, corresponding to sources
	sources spans // the same by source, corresponding to places
	ghosts  spans // as places
	owed    []debt
}

// debt is an unmapping that should still be announced: of the range that an
// mremap has left. With MREMAP_DONTUNMAP it never is, but then nothing can move
// in before some other unmapping is announced.
type debt struct {
	start, end uint64
	reused     bool // memory has moved in since
}

func (d debt) overlaps(start, end uint64) bool { return d.start < end && start < d.end }

func (l *layout) insert(s span) {
	l.places.insert(s)
	l.sources.insert(s.turned())
}

// cut takes the pages at [start, end) out.
func (l *layout) cut(start, end uint64) []span {
	taken := l.places.cut(start, end)
	for _, s := range taken {
		l.sources.cut(s.to, s.to+s.len())
	}
	return taken
}

// settle says that all changes so far have been announced.
func (l *layout) settle() { l.owed, l.ghosts = nil, nil }

// settled reports whether nothing is waited for.
func (l *layout) settled() bool { return len(l.owed) == 0 && len(l.ghosts) == 0 }

// clone is the layout of a forked child.
func (l *layout) clone() layout {
	return layout{places: slices.Clone(l.places), sources: slices.Clone(l.sources)}
}

// remove applies the loss of the content of [start, end).
func (l *layout) remove(start, end uint64) { l.cut(start, end) }

// unmap applies the end of the mappings in [start, end).
func (l *layout) unmap(start, end uint64) {
	if i := slices.Index(l.owed, debt{start, end, true}); i >= 0 {
		l.owed = slices.Delete(l.owed, i, i+1)
		return
	}
	l.owed = slices.DeleteFunc(l.owed, func(d debt) bool { return !d.reused && d.overlaps(start, end) })
	l.depart(start, end)
}

// remap applies the move of [start, end) to to. It returns those pages, in
// sources, that were ghosts until now: they may have been passed over.
func (l *layout) remap(start, end, to uint64) (back []span) {
	moving, wereGhosts := l.depart(start, end)
	toEnd := to + (end - start)
	for _, s := range l.cut(to, toEnd) {
		l.ghosts.cut(s.start, s.end) // a third layer: nothing sensible is left to do for the oldest
		l.ghosts.insert(s)
	}
	for i, d := range l.owed {
		l.owed[i].reused = d.reused || d.overlaps(to, toEnd)
	}
	for _, s := range append(moving, wereGhosts...) {
		l.insert(s.shifted(start, to))
	}
	for _, s := range wereGhosts {
		back = append(back, s.turned())
	}
	if d := (debt{start, end, len(wereGhosts) > 0}); !slices.Contains(l.owed, d) {
		l.owed = append(l.owed, d)
	}
	return back
}

// depart takes out what leaves [start, end): ghosts, and pages where there are no ghosts.
func (l *layout) depart(start, end uint64) (pages, ghosts []span) {
	if !l.ghosts.overlaps(start, end) {
		return l.cut(start, end), nil
	}
	ghosts = l.ghosts.cut(start, end)
	at := start
	for _, g := range ghosts {
		pages = append(pages, l.cut(at, g.start)...)
		at = g.end
	}
	return append(pages, l.cut(at, end)...), ghosts
}
