package track

import (
	"errors"
	"slices"
	"sort"

	"stasis/internal/proc"
	"stasis/internal/uffd"
)

// A mapping that grows, or moves, over the end of one that is just being
// registered is split there, and the program's next mremap(2) of it fails. Between
// the look at a mapping and its registration lie some microseconds, or a time
// slice where the CPU is wanted: a program that maps and moves all the time meets
// them. So neighbours are registered together, in one call, with the free space
// between and around them: whatever comes up there meanwhile is in the group as a
// whole. What else of private memory lies between them is registered as well, such
// as a part that is locked at this moment: unlocked again, it could not be joined
// with the rest. To be registered alone means nothing; only what is armed is
// protected.
//
// The ends of a group are at mappings of files and shared memory, or at the end
// of free space. They could only be in the middle of a mapping if one of those
// went at the same moment.

// lowest is an address below which no program has anything (vm.mmap_min_addr).
const lowest = uint64(1 << 16)

// group is a range without anything but memory that can be tracked.
type group struct {
	proc.Range
	before, behind proc.Range   // what there is at its ends, or further on
	listed         []proc.Range // mappings in it
	fresh          []bool       // which of these are not registered yet
}

// groupTries is how often a group is registered whose ends cut something.
const groupTries = 4

// registerGroups registers the mappings of a round that are not, together with
// their neighbours, as far as the kernel allows it. What it leaves out is
// registered by itself.
func (w *WriteProtect) registerGroups(mappings []proc.Mapping) error {
	w.grouped = make(map[proc.Range]bool)
	for i := 0; i < len(mappings); {
		var n int
		var err error
		cut := true
		for tries := 0; cut && err == nil && tries < groupTries; tries++ { // each time with what is there now
			undisturbed(func() { n, cut, err = w.registerFrom(mappings, i) })
		}
		if errors.Is(err, proc.ErrNoQuery) {
			return nil
		}
		if err != nil {
			return w.unlessGone(err)
		}
		i += n
	}
	return nil
}

// registerFrom registers the group that begins with a mapping of a list, and says
// how many of the list are in it, and whether an end of it cut something.
func (w *WriteProtect) registerFrom(mappings []proc.Mapping, first int) (n int, cut bool, err error) {
	g, n, err := w.groupFrom(mappings, first)
	if err != nil || !slices.Contains(g.fresh, true) {
		return n, false, err
	}
	w.meanwhile(false)
	if !w.registerGroup(&g) { // somebody else's is there
		return n, false, w.registerParts(g)
	}
	w.meanwhile(true)
	cut, err = w.note(g)
	return n, cut, err
}

// note remembers what is registered with a group. Where an end of it cut something
// the registration is taken back, and each of its mappings will be looked at once
// more.
func (w *WriteProtect) note(g group) (cut bool, err error) {
	if w.cuts(g) {
		return true, w.fd.Unregister(g.Start, g.Len())
	}
	for i, r := range g.listed {
		w.grouped[r] = g.fresh[i]
	}
	return false, nil
}

// registerParts registers what of a group is not somebody else's.
func (w *WriteProtect) registerParts(g group) error {
	for _, part := range w.parts(g) {
		w.meanwhile(false)
		if w.fd.Register(part.Start, part.Len(), uffd.RegisterWP) != nil {
			continue
		}
		if _, err := w.note(part); err != nil {
			return err
		}
	}
	return nil
}

// parts are what lies between those mappings of a group that are registered
// already, somebody else's among them. A mapping of somebody else that grows into
// a part makes the kernel refuse the part, and none of it is joined with one of
// the part; so nothing is cut there.
func (w *WriteProtect) parts(g group) (list []group) {
	part := group{Range: proc.Range{Start: g.Start}, before: g.before}
	end := func(at uint64, behind proc.Range) {
		part.End, part.behind = at, behind
		for i, r := range g.listed {
			if part.Start <= r.Start && r.End <= part.End {
				part.listed, part.fresh = append(part.listed, r), append(part.fresh, g.fresh[i])
			}
		}
		if slices.Contains(part.fresh, true) {
			list = append(list, part)
		}
	}
	for at := g.Start; ; {
		m, err := w.layout.At(at)
		if err != nil || m.End <= at || m.Start >= g.End {
			end(g.End, g.behind)
			return list
		}
		if w.pagemap.Tracked(m.Start) {
			end(max(part.Start, m.Start), m)
			part = group{Range: proc.Range{Start: m.End}, before: m}
		}
		at = m.End
	}
}

// registerGroup registers a group with the private memory that touches it, or
// without that where it cannot be registered: that of the kernel's clock, say.
func (w *WriteProtect) registerGroup(g *group) bool {
	wide := *g
	for range 64 { // bounds the work where a program maps without an end
		at, anonymous, err := w.layout.Look(wide.End)
		if err != nil || !anonymous || at.Start != wide.End {
			wide.behind = at
			break
		}
		wide.End = at.End
	}
	for range 64 {
		at, anonymous, err := w.layout.Look(wide.Start - 1)
		if err != nil || !anonymous || at.End != wide.Start {
			wide.before = at
			break
		}
		wide.Start = at.Start
	}
	if wide.Range != g.Range && w.fd.Register(wide.Start, wide.Len(), uffd.RegisterWP) == nil {
		*g = wide
		return true
	}
	return w.fd.Register(g.Start, g.Len(), uffd.RegisterWP) == nil
}

// meanwhile lets a test act between the look at a group and its registration, and
// right behind that.
func (w *WriteProtect) meanwhile(registered bool) {
	if w.about != nil {
		w.about(registered)
	}
}

// registered says whether a mapping of the list was registered with its group and
// still is. By that it can have grown together with its neighbours: self is what
// is in its place now.
func (w *WriteProtect) registered(r, self proc.Range) bool {
	_, in := w.grouped[r]
	return in && self.Start <= r.Start && r.End <= self.End && w.pagemap.Tracked(r.Start)
}

// unprotect sees to it that all pages of a mapping count as written if it was
// registered just now; see register for why they need not.
func (w *WriteProtect) unprotect(r proc.Range) (bool, error) {
	if !w.grouped[r] {
		return true, nil
	}
	stale, err := w.pagemap.AnyProtected(r)
	if err == nil && stale {
		err = w.fd.WriteProtect(r.Start, r.Len(), 0)
	}
	return err == nil, w.unlessGone(err)
}

// groupFrom finds the group that begins with a mapping of a list, and how many
// of the list are in it. The mappings are of some milliseconds ago.
func (w *WriteProtect) groupFrom(mappings []proc.Mapping, first int) (g group, n int, err error) {
	from := mappings[first].Range
	floor := lowest
	if first > 0 {
		floor = mappings[first-1].End
	}
	if g.Start, err = w.freeBefore(from, floor); err == nil {
		g.before, err = w.layout.At(g.Start - 1)
	}
	if err != nil {
		return g, 1, err
	}
	g.End = from.Start
	for next := first; ; {
		at, anonymous, err := w.layout.Look(g.End)
		if err != nil {
			return g, max(n, 1), err
		}
		g.behind = at
		for next < len(mappings) && mappings[next].End <= at.Start { // gone
			next++
			n++
		}
		listed := next < len(mappings) && mappings[next].Range == at
		between := anonymous && n > 0 && next < len(mappings) && at.End <= mappings[next].Start
		if !listed && !between {
			// It ends here, and the rest of the free space belongs to it.
			if at.Start > g.End {
				g.End = at.Start
			}
			return g, max(n, 1), nil
		}
		if listed {
			g.listed = append(g.listed, at)
			g.fresh = append(g.fresh, !w.pagemap.Tracked(at.Start))
			next++
			n++
		}
		g.End = at.End
	}
}

// freeBefore returns where the free space before a mapping begins, not before
// floor.
func (w *WriteProtect) freeBefore(r proc.Range, floor uint64) (uint64, error) {
	var failed error
	from, to := floor/proc.PageSize, max(floor, r.Start)/proc.PageSize
	pages := sort.Search(int(to-from), func(i int) bool {
		at, err := w.layout.At((from + uint64(i)) * proc.PageSize)
		if err != nil {
			failed = err
		}
		return at.Start >= r.Start || at == proc.Range{}
	})
	return (from + uint64(pages)) * proc.PageSize, failed
}

// cuts says whether one of a group's ends may lie in the middle of what the
// program takes for one mapping: there are mappings on both sides, and the outer
// one is not that of before.
func (w *WriteProtect) cuts(g group) bool {
	return w.cutsAt(g.Start, func(outside, _ proc.Range) bool { return outside != g.before }) ||
		w.cutsAt(g.End, func(_, outside proc.Range) bool { return outside != g.behind })
}

func (w *WriteProtect) cutsAt(end uint64, isNew func(before, behind proc.Range) bool) bool {
	before, err := w.layout.At(end - 1)
	if err != nil {
		return true
	}
	behind, err := w.layout.At(end)
	return err != nil || before.End == end && behind.Start == end && isNew(before, behind)
}
