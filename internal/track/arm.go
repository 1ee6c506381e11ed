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
		err := w.fd.Register(r.Start, r.Len(), uffd.RegisterWP)
		return err == nil, w.unlessGone(err)
	}
	if err != nil || was.self != r {
		return false, w.unlessGone(err)
	}
	if err := w.fd.Register(r.Start, r.Len(), uffd.RegisterWP); err != nil {
		if errors.Is(err, unix.EBUSY) {
			w.foreign += r.Len()
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
