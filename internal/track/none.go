package track

import "stasis/internal/proc"

// None is the tracker where writes cannot be followed: all memory counts as
// written in each round, and at the freeze. Which pages are still equal to the
// parent's is then found by comparing them.
type None struct{ pid int }

var _ Tracker = (*None)(nil)

// NewNone makes a tracker that follows nothing.
func NewNone(pid int) *None { return &None{pid} }

// Kind implements [Tracker].
func (n *None) Kind() Kind { return KindNone }

// Round implements [Tracker]: all pages that are there.
func (n *None) Round(mappings []proc.Mapping, visit func(proc.Run)) error {
	return n.Look(ranges(mappings), func(r proc.Run, _ bool) { visit(r) })
}

// Look implements [Tracker]: all pages have changed.
func (n *None) Look(of []proc.Range, visit func(r proc.Run, changed bool)) error {
	pagemap, err := proc.OpenPagemap(n.pid)
	if err != nil {
		return err
	}
	defer pagemap.Close()
	for _, r := range of {
		if err := pagemap.Scan(r, func(r proc.Run) { visit(r, true) }); err != nil {
			return err
		}
	}
	return nil
}

// Rearm implements [Tracker]; there is nothing to arm.
func (n *None) Rearm([]proc.Range) error { return nil }

// Follows implements [Tracker].
func (n *None) Follows([]proc.Mapping) bool { return false }

// Fd implements [Tracker]; there is nothing to keep.
func (n *None) Fd() int { return -1 }

// Close implements [Tracker].
func (n *None) Close() error { return nil }
