package track

import (
	"cmp"
	"slices"
	"sort"

	"stasis/internal/proc"
)

// A look at a frozen process has just said which pages are not protected. To find
// them once more by a walk over all of its page tables takes some 3 ms a GiB, while
// it stands still; so only they are protected.

// gapPages is how many pages that are protected already are passed over again
// rather than beginning another call.
const gapPages = 16

// noteWritten notes what a look has found not to be protected.
func (w *WriteProtect) noteWritten(r proc.Range) {
	if n := len(w.written); n > 0 {
		last := &w.written[n-1]
		if last.End <= r.Start && r.Start-last.End <= gapPages*proc.PageSize {
			last.End = r.End
			return
		}
	}
	w.written = append(w.written, r)
}

// Rearm implements [Tracker]. It cannot fail in a way that counts: a page that
// is not protected counts as written. What this tracker does not follow is left
// alone: the protection may be another tracker's, which has to see the writes.
// That holds as well for what was written since the last look, if the process
// was not frozen then.
func (w *WriteProtect) Rearm(ranges []proc.Range) error {
	byStart := func(a, b proc.Range) int { return cmp.Compare(a.Start, b.Start) }
	slices.SortFunc(w.looked, byStart)
	slices.SortFunc(w.written, byStart)
	for _, r := range ranges {
		targets := []proc.Range{r}
		if covered(w.looked, r) {
			targets = within(w.written, r)
		}
		for _, t := range targets {
			for _, part := range within(w.armed, t) {
				_ = w.pagemap.Protect(part, func(proc.Run) {})
			}
		}
	}
	w.looked, w.written = w.looked[:0], w.written[:0]
	return nil
}

// covered says whether one of some sorted ranges, of which none overlap, has all
// of r.
func covered(sorted []proc.Range, r proc.Range) bool {
	i := sort.Search(len(sorted), func(i int) bool { return sorted[i].End > r.Start })
	return i < len(sorted) && sorted[i].Start <= r.Start && r.End <= sorted[i].End
}

// within is what of some sorted ranges lies in r.
func within(sorted []proc.Range, r proc.Range) (parts []proc.Range) {
	from := sort.Search(len(sorted), func(i int) bool { return sorted[i].End > r.Start })
	for _, s := range sorted[from:] {
		if s.Start >= r.End {
			break
		}
		parts = append(parts, proc.Range{Start: max(r.Start, s.Start), End: min(r.End, s.End)})
	}
	return parts
}
