// Package track finds out which pages a running process writes.
//
// Words: to arm is to begin watching a mapping; a round asks for the pages that
// were written since the round before and watches them anew in the same step,
// so that no write between the two is missed.
//
// A [Tracker] belongs to one goroutine. Closing it ends the tracking and leaves
// nothing in the process.
package track

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"stasis/internal/inject"
	"stasis/internal/proc"
	"stasis/internal/uffd"
)

// Tracker follows the writes of one process.
type Tracker interface {
	// Round visits the runs of pages in the mappings that were written since
	// the last round, in address order; in the first round these are all that
	// are there. Mappings that cannot be tracked are left out: their pages
	// count as changed at the freeze. The mappings are of now; what has
	// changed since the last round is armed on the way.
	Round(mappings []proc.Mapping, visit func(proc.Run)) error
	// Look visits the runs of pages that are there in some ranges, in the order
	// of the ranges, and says of each whether it may have been written since the
	// last round. It is no round: the next one finds the same pages again.
	Look(ranges []proc.Range, visit func(r proc.Run, changed bool)) error
	// Rearm is a round without a visit, for a process that is frozen: the next
	// round finds what is written from now on, in these ranges. What was written
	// before, anywhere, is forgotten, so Look has to come first.
	Rearm(ranges []proc.Range) error
	// Follows says whether the tracker is one of the address space that the
	// process has now. After exec it is not, and all memory counts as written.
	Follows(mappings []proc.Mapping) bool
	// Fd returns a descriptor from which [Resume] makes the tracker again, in
	// another process. It stays the tracker's. It is -1 when nothing can be kept.
	Fd() int
	Kind() Kind
	// Close ends the tracking, unless Fd is kept by somebody.
	Close() error
}

// ErrUnavailable says that writes cannot be tracked here, by the kernel or in
// this process. The memory can still be copied while the process is frozen.
var ErrUnavailable = errors.New("writes cannot be tracked")

// WriteProtect is a tracker that lets the kernel write-protect pages and
// resolve the faults itself (userfaultfd with WP_ASYNC, Linux 6.7).
type WriteProtect struct {
	pid     int
	fd      *uffd.FD
	pagemap *proc.Pagemap
	layout  *proc.Layout
	adopted bool         // an earlier command has armed it
	begun   bool         // it was looked at what is somebody else's
	foreign []proc.Range // what another userfaultfd had before the first one
	armed   []proc.Range // what this tracker follows since the last round, sorted and joined
	refused []proc.Range // mappings of the last round that another userfaultfd has

	looked  []proc.Range // where Look has looked since the last round
	written []proc.Range // and what it has found written there, with short gaps; sorted where looked is

	grouped map[proc.Range]bool   // mappings in the groups that this round has registered; true: they were not before
	about   func(registered bool) // for tests; see meanwhile
}

var _ Tracker = (*WriteProtect)(nil)

// NewWriteProtect puts a tracker into a process; one of its threads is stopped
// for less than a millisecond. The error wraps [ErrUnavailable] when this
// kernel or this process does not allow it, or [proc.ErrGone].
func NewWriteProtect(pid int) (*WriteProtect, error) {
	return NewWriteProtectBy(inject.Userfaultfd, pid)
}

// NewWriteProtectBy is NewWriteProtect with another way to make the descriptor,
// such as that of an [inject.Helper].
func NewWriteProtectBy(userfaultfd func(pid, flags int) (int, error), pid int) (*WriteProtect, error) {
	pagemap, err := proc.OpenPagemap(pid)
	if err != nil {
		return nil, err
	}
	fd, err := create(userfaultfd, pid)
	if err != nil {
		pagemap.Close()
		return nil, err
	}
	layout, err := proc.OpenLayout(pid)
	if err != nil {
		unix.Close(fd)
		pagemap.Close()
		return nil, err
	}
	w := &WriteProtect{pid: pid, fd: uffd.FromFD(fd), pagemap: pagemap, layout: layout}
	if _, err := w.fd.API(uffd.FeatureWPAsync | uffd.FeatureWPUnpopulated); err != nil {
		w.Close()
		return nil, fmt.Errorf("%w in process %d: the kernel lacks asynchronous write protection (Linux 6.7): %w", ErrUnavailable, pid, err)
	}
	return w, nil
}

// create makes the userfaultfd. A target that is not privileged may only have
// one for its own faults; tracking loses nothing by it.
func create(userfaultfd func(pid, flags int) (int, error), pid int) (int, error) {
	flags := unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := userfaultfd(pid, flags)
	if errors.Is(err, unix.EPERM) {
		fd, err = userfaultfd(pid, flags|uffd.UserModeOnly)
	}
	if err == nil || errors.Is(err, proc.ErrGone) {
		return fd, err
	}
	return -1, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Close closes this process' descriptor, the last one: the kernel then removes
// the protection.
func (w *WriteProtect) Close() error {
	return errors.Join(w.fd.Close(), w.pagemap.Close(), w.layout.Close())
}

// Round implements [Tracker].
func (w *WriteProtect) Round(mappings []proc.Mapping, visit func(proc.Run)) error {
	w.findForeign(mappings)
	w.armed, w.refused = w.armed[:0], w.refused[:0]
	w.looked, w.written = w.looked[:0], w.written[:0]
	if err := w.registerGroups(mappings); err != nil {
		return err
	}
	for _, m := range mappings {
		if err := w.roundOf(m.Range, visit); err != nil {
			return err
		}
	}
	return nil
}

// Foreign is how many bytes of the mappings of the last round cannot be tracked
// because a userfaultfd of somebody else has them.
func (w *WriteProtect) Foreign() (bytes uint64) {
	for _, r := range w.refused {
		bytes += r.Len()
	}
	return bytes
}

// Pending is how many bytes the next round would visit if it began now, in mappings of now. It is for a process that runs, so a
// guess; what a round can't track is left out. known is false where it can't be told, as by a tracker that would have to stop the process.
func Pending(t Tracker, mappings []proc.Mapping) (bytes uint64, known bool) {
	w, ok := t.(*WriteProtect)
	if !ok {
		return 0, false
	}
	for _, m := range mappings {
		if overlaps(w.refused, m.Range) {
			continue
		}
		written, err := w.pagemap.Changed(m.Range)
		if err != nil {
			return 0, false
		}
		bytes += written
	}
	return bytes, true
}

// roundOf arms a mapping, which does nothing where it is armed already, and
// asks for its written pages. A mapping may have gone, or been replaced, since
// it was listed.
func (w *WriteProtect) roundOf(r proc.Range, visit func(proc.Run)) error {
	var armed bool
	var err error
	undisturbed(func() { armed, err = w.arm(r) })
	if err != nil || !armed {
		return err
	}
	if n := len(w.armed); n > 0 && w.armed[n-1].End == r.Start {
		w.armed[n-1].End = r.End
	} else {
		w.armed = append(w.armed, r)
	}
	err = w.protect(r, visit)
	if errors.Is(err, unix.EPERM) {
		// Replaced in part meanwhile. The kernel may have protected pages
		// without telling which, so all of them count as written.
		return w.pagemap.Scan(r, visit)
	}
	return err
}

// stepBytes is how much memory is protected at once. The visit takes its time to
// copy pages; what is written to those that are not protected yet need not be
// copied again.
const stepBytes = 32 << 20

// protect is [proc.Pagemap.Protect] in steps.
func (w *WriteProtect) protect(r proc.Range, visit func(proc.Run)) error {
	for at := r.Start; at < r.End; {
		end := min(r.End, at&^(stepBytes-1)+stepBytes)
		if err := w.pagemap.Protect(proc.Range{Start: at, End: end}, visit); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// unlessGone passes over a mapping that cannot be armed; only the end of the
// process is an error.
func (w *WriteProtect) unlessGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("track process %d: %w", w.pid, proc.ErrGone)
	}
	return nil
}

// Kind implements [Tracker].
func (w *WriteProtect) Kind() Kind { return KindUserfaultfd }

// Look implements [Tracker]. The kernel says of a page only that somebody tracks
// it: with another one's userfaultfd there, a page that is not written says
// nothing to us.
func (w *WriteProtect) Look(ranges []proc.Range, visit func(r proc.Run, changed bool)) error {
	lost := w.lost(ranges)
	if len(lost) > 0 {
		w.armed = without(w.armed, lost)
	}
	w.looked = append(w.looked, ranges...)
	return w.scan(ranges, func(run proc.Run) {
		if run.Changed() {
			w.noteWritten(run.Range)
		}
		cut(run, lost, func(part proc.Run, _ bool) { visit(part, part.Changed() || !w.follows(part.Range)) })
	})
}

// Unwritten visits the runs of pages in some ranges that were not written since
// the tracker's last round, or that of the command before. It is for a tracker
// that has not begun its round.
func Unwritten(t Tracker, ranges []proc.Range, visit func(proc.Range)) error {
	if w, ok := t.(*WriteProtect); ok {
		return w.scan(ranges, func(run proc.Run) {
			if !run.Changed() {
				visit(run.Range)
			}
		})
	}
	return t.Look(ranges, func(run proc.Run, changed bool) {
		if !changed {
			visit(run.Range)
		}
	})
}

// scan visits the pages that are there in the address space that the process
// has now.
func (w *WriteProtect) scan(ranges []proc.Range, visit func(proc.Run)) error {
	pagemap, err := proc.OpenPagemap(w.pid)
	if err != nil {
		return err
	}
	defer pagemap.Close()
	for _, r := range ranges {
		if err := pagemap.Scan(r, visit); err != nil {
			return err
		}
	}
	return nil
}

// follows says whether a range lies in what this tracker has armed.
func (w *WriteProtect) follows(r proc.Range) bool { return covered(w.armed, r) }

// Available says whether this kernel can track writes, by a trial on this
// process; nil if it can.
func Available() error {
	fd, err := uffd.New(unix.O_CLOEXEC | unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("%w: userfaultfd: %w", ErrUnavailable, err)
	}
	defer fd.Close()
	if _, err := fd.API(uffd.FeatureWPAsync | uffd.FeatureWPUnpopulated); err != nil {
		return fmt.Errorf("%w: the kernel lacks asynchronous write protection (Linux 6.7): %w", ErrUnavailable, err)
	}
	pagemap, err := proc.OpenPagemap(os.Getpid())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer pagemap.Close()
	memory, err := unix.Mmap(-1, 0, proc.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer unix.Munmap(memory)
	return tryTracking(fd, pagemap, memory)
}

// tryTracking writes to a page before and after it is protected, and checks
// that the page map tells the difference: a kernel that only claims to track
// would lose data.
func tryTracking(fd *uffd.FD, pagemap *proc.Pagemap, memory []byte) error {
	at := addressOf(memory)
	page := proc.Range{Start: at, End: at + uint64(len(memory))}
	memory[0] = 1
	if err := fd.Register(page.Start, page.Len(), uffd.RegisterWP); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	for _, write := range []bool{true, false, true} {
		seen := false
		if write {
			memory[0]++
		}
		if err := pagemap.Protect(page, func(r proc.Run) { seen = true }); err != nil {
			return fmt.Errorf("%w: PAGEMAP_SCAN: %w", ErrUnavailable, err)
		}
		if seen != write {
			return fmt.Errorf("%w: a trial write was reported as %t where it was %t", ErrUnavailable, seen, write)
		}
	}
	return nil
}
