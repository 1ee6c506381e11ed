package track

import (
	"errors"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/uffd"
)

// A registration that does not fit a mapping exactly splits it, and the program
// would see that: mremap(2) refuses a range that spans two mappings, and on
// Linux 6.17 and newer even moves the first of them before it refuses the rest.
// Most mappings are therefore registered in groups; see group.go. The list of
// mappings is some milliseconds old when they are armed, so each is looked at
// once more, a microsecond before. What changes even then shows behind it, and
// the registration is taken back, which joins the mappings again.

// surroundings are a mapping and its neighbours. Where there is no mapping just
// before or behind, the field has the next one further on.
type surroundings struct{ before, self, behind proc.Range }

// arm registers a mapping. It returns false when the mapping has changed since
// it was listed, or cannot be tracked.
func (w *WriteProtect) arm(r proc.Range) (bool, error) {
	was, err := w.look(r)
	if errors.Is(err, proc.ErrNoQuery) {
		err := w.register(r)
		return err == nil, w.unlessGone(err)
	}
	if err != nil {
		return false, w.unlessGone(err)
	}
	if w.registered(r, was.self) {
		return w.unprotect(r)
	}
	if was.self != r {
		return false, nil
	}
	if err := w.register(r); err != nil {
		if errors.Is(err, unix.EBUSY) {
			w.refused = append(w.refused, r)
		}
		return false, w.unlessGone(err)
	}
	is, err := w.look(r)
	if err != nil {
		return false, w.unlessGone(err)
	}
	if split(r, was, is) {
		return false, w.unlessGone(w.fd.Unregister(r.Start, r.Len()))
	}
	return true, nil
}

// register registers a mapping, unless it is, and sees to it that all of its pages
// count as written then.
//
// They need not. When mremap(2) moves registered memory next to other registered
// memory of the same origin, the kernel joins the two mappings, and then takes the
// registration from the whole, but the protection bits from the moved pages only
// (seen on Linux 6.18). The bits of the others mean nothing any more: such a page
// is written without a trace, and its bit stays. Were the mapping just registered
// again, the page would count as unchanged for ever.
//
// Of memory that is registered already, by whichever userfaultfd, the bits are good
// if it is ours: to register it again then does nothing, and else is refused. Should
// the kernel end the registration in this very moment, it joins mappings, which shows.
func (w *WriteProtect) register(r proc.Range) error {
	tracked := w.pagemap.Tracked(r.Start)
	if _, err := w.layout.At(r.Start); tracked && errors.Is(err, proc.ErrNoQuery) && !overlaps(w.foreign, r) {
		return nil
	}
	if err := w.fd.Register(r.Start, r.Len(), uffd.RegisterWP); err != nil {
		return err
	}
	if is, err := w.layout.At(r.Start); tracked && err == nil && is == r {
		return nil
	}
	stale, err := w.pagemap.AnyProtected(r)
	if err != nil || !stale {
		return err
	}
	if err := w.fd.Unregister(r.Start, r.Len()); err != nil { // clears the bits
		return err
	}
	return w.fd.Register(r.Start, r.Len(), uffd.RegisterWP)
}

// split says whether a neighbour has come up that may be a part of the same
// mapping, cut off by the registration. A mapping that has grown together with
// an armed neighbour is larger than r, and no such case.
func split(r proc.Range, was, is surroundings) bool {
	if is.self != r {
		return false
	}
	cutBehind := is.behind.Start == r.End && is.behind != was.behind
	cutBefore := is.before.End == r.Start && is.before != was.before
	return cutBehind || cutBefore
}

func (w *WriteProtect) look(r proc.Range) (s surroundings, err error) {
	for _, part := range []struct {
		into *proc.Range
		addr uint64
	}{{&s.before, r.Start - 1}, {&s.self, r.Start}, {&s.behind, r.End}} {
		if *part.into, err = w.layout.At(part.addr); err != nil {
			return s, err
		}
	}
	return s, nil
}
