package track

import (
	"errors"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/uffd"
)

// A registration that does not fit a mapping exactly splits it, and the program
// would see that: mremap(2) refuses a range that spans two mappings. The list of
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
	if err != nil || was.self != r {
		return false, w.unlessGone(err)
	}
	if err := w.register(r); err != nil {
		if errors.Is(err, unix.EBUSY) {
			w.refused += r.Len()
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
func (w *WriteProtect) register(r proc.Range) error {
	if w.pagemap.Tracked(r.Start) && !overlaps(w.foreign, r) {
		// It is registered already. To do it again would be wrong: the kernel may
		// have ended the registration a moment ago. Without one, protecting fails.
		return nil
	}
	if err := w.fd.Register(r.Start, r.Len(), uffd.RegisterWP); err != nil {
		return err
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

// findForeign notes, before anything is registered, which memory is watched by
// somebody else's userfaultfd. It cannot be registered as long as that lasts.
func (w *WriteProtect) findForeign(mappings []proc.Mapping) {
	if w.begun {
		return
	}
	w.begun = true
	var last proc.Range
	if w.adopted {
		last = w.unwritable()
	}
	for _, m := range mappings {
		if w.pagemap.Tracked(m.Start) && (!w.adopted || !w.has(m.Range, last)) {
			w.foreign = append(w.foreign, m.Range)
		}
	}
}

// has says whether memory that is watched is watched by this tracker. Nothing
// tells that but an attempt to register it, which may do no more than that: so
// it ends at the mapping last, with which it cannot succeed. The kernel looks at
// all mappings in their order before it registers any, and says EBUSY of one that
// is somebody else's, EPERM or EINVAL of one that nobody can register.
func (w *WriteProtect) has(r, last proc.Range) bool {
	if last.Start < r.End {
		return false // there is none, or it lies before: better safe
	}
	err := w.fd.Register(r.Start, last.End-r.Start, uffd.RegisterWP)
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)
}

// unwritable is the memory in which the kernel gives a process its clock: no
// process can write to it, or make it writable, and so it cannot be registered.
func (w *WriteProtect) unwritable() proc.Range {
	maps, err := proc.Maps(w.pid)
	if err != nil {
		return proc.Range{}
	}
	for _, m := range maps {
		if m.Path == "[vvar]" {
			return m.Range
		}
	}
	return proc.Range{}
}

func overlaps(list []proc.Range, r proc.Range) bool {
	for _, other := range list {
		if other.Start < r.End && r.Start < other.End {
			return true
		}
	}
	return false
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
