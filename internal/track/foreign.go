package track

import (
	"errors"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/uffd"
)

// The kernel says that memory is watched, not by which userfaultfd. One of
// another party may come at any time, also for memory that this tracker watched
// a moment ago: the program has unmapped it and mapped it again. What the other
// one protects would count as unchanged here. So it is found out whose a mapping
// is whenever it is armed, and when the process is frozen.
//
// The only question that the kernel answers from outside is whether it can be
// registered, and where that is no it does. (UFFDIO_MOVE, of a page onto itself,
// tells as well and changes nothing, but only the process itself may call it.)

// lost lists what this tracker does not watch any more, of what is watched in
// some ranges of a process that stands still. To register a mapping again that
// is registered already does nothing, and is refused where it is another one's.
func (w *WriteProtect) lost(ranges []proc.Range) (lost []proc.Range) {
	for _, r := range ranges {
		for at := r.Start; at < r.End; {
			m, err := w.layout.At(at)
			if err != nil || m.Start >= r.End || m.End <= at {
				break // this kernel cannot be asked, or nothing is mapped there any more
			}
			part := proc.Range{Start: max(at, m.Start), End: min(r.End, m.End)}
			if w.pagemap.Tracked(part.Start) && w.fd.Register(part.Start, part.Len(), uffd.RegisterWP) != nil {
				lost = append(lost, part)
			}
			at = part.End
		}
	}
	return lost
}

// without takes sorted ranges out of others.
func without(list, gone []proc.Range) (rest []proc.Range) {
	for _, r := range list {
		cut(proc.Run{Range: r}, gone, func(part proc.Run, inside bool) {
			if !inside {
				rest = append(rest, part.Range)
			}
		})
	}
	return rest
}

// cut splits a run where it goes into or out of some sorted ranges, and says of
// each part whether it lies in one.
func cut(run proc.Run, ranges []proc.Range, visit func(part proc.Run, inside bool)) {
	emit := func(end uint64, inside bool) {
		if part := (proc.Run{Range: proc.Range{Start: run.Start, End: end}, Categories: run.Categories}); part.Start < part.End {
			visit(part, inside)
			run.Start = end
		}
	}
	for _, r := range ranges {
		if r.End > run.Start && r.Start < run.End {
			emit(max(run.Start, r.Start), false)
			emit(min(run.End, r.End), true)
		}
	}
	emit(run.End, false)
}

// findForeign notes, before anything is registered, which memory is watched by
// somebody else's userfaultfd. It cannot be registered as long as that lasts.
// That is all that is known of it on kernels without PROCMAP_QUERY.
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
