//go:build linux && (amd64 || arm64)

package pager

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
	"stasis/internal/uffd"
)

// lazyCopy bounds a copy into a running task, in bytes: events of the task wait
// for it, about 15 µs.
const lazyCopy = 64 << 10

// blankRun is how many bytes of zero pages answer a fault where the checkpoint
// has no data. A program that touches one fresh page mostly touches the next;
// zero pages cost no memory.
const blankRun = 16 * pageSize

// task is an address space and its userfaultfd.
type task struct {
	p      *Pager
	origin int  // process of the checkpoint
	forked bool // a child that was born under the pager
	file   *os.File
	fd     *uffd.FD // file's; closed by closing file

	// mu is held for reading while a page is looked up and copied, for writing
	// while events are read and applied. See the package comment.
	mu      sync.RWMutex
	gone    bool // ended; file is closed or about to be
	changed bool // mappings have come, gone or moved
	layout  layout
	version uint64 // how many changes were applied to layout
	events  [16]uffd.Event

	// quiet is version + 1 when the kernel was last seen with no change under
	// way: all that had happened was announced and applied.
	quiet atomic.Uint64

	bulk    bulk // set once, guarded by mu
	bulkPID int
}

// newTask makes a task around a userfaultfd. It owns fd, also when it fails.
func (p *Pager) newTask(origin, fd int) (*task, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("cannot use its userfaultfd: %w", err)
	}
	if p.o.OnDescriptor != nil && !p.isFilled() {
		if err := p.o.OnDescriptor(fd); err != nil {
			_ = unix.Close(fd)
			return nil, err
		}
	}
	return &task{p: p, origin: origin, file: os.NewFile(uintptr(fd), "userfaultfd"), fd: uffd.FromFD(fd)}, nil
}

// join adds a task to those that are filled, and begins to read its events.
func (p *Pager) join(t *task) error {
	raw, err := t.file.SyscallConn()
	if err != nil {
		_ = t.file.Close()
		return fmt.Errorf("cannot use its userfaultfd: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return t.file.Close()
	}
	p.tasks = append(p.tasks, t)
	p.joined++
	p.running.Go(func() {
		_ = raw.Read(func(uintptr) bool { return !t.follow() }) // ends when the file is closed
	})
	return nil
}

// end closes a task's userfaultfd. Not to be called with t.mu held, nor from
// within pump: closing waits for the reader to leave.
func (p *Pager) end(t *task) {
	t.mu.Lock()
	gone := t.gone
	t.gone = true
	t.mu.Unlock()
	if gone {
		return
	}
	_ = t.file.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tasks = slices.DeleteFunc(p.tasks, func(o *task) bool { return o == t })
}

// follow reads and applies events, and for a moment waits with a thread that
// has moved memory until all of its announcements are in: the next change is
// then understood for what it is. It returns false when the task has ended.
func (t *task) follow() bool {
	for range 64 {
		if !t.pump() {
			return false
		}
		if t.isQuiet() {
			break
		}
		runtime.Gosched()
	}
	return true
}

// isQuiet reports whether layout waits for nothing, or no change is under way.
func (t *task) isQuiet() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.gone || t.layout.settled() {
		return true
	}
	if t.fd.Changing() {
		return false
	}
	t.quiet.Store(t.version + 1)
	return true
}

// pump reads and applies the events that are there. It returns false when the task has ended.
func (t *task) pump() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for !t.gone {
		n, err := t.fd.ReadEvents(t.events[:])
		if err != nil {
			if !errors.Is(err, unix.EAGAIN) {
				t.p.fail(fmt.Errorf("cannot serve the memory of %s: %w", t, err))
				return false
			}
			return true
		}
		for _, e := range t.events[:n] {
			t.apply(e)
		}
	}
	return false
}

// apply handles one event, with t.mu held for writing. Threads that sleep in a
// fault within a changed range are woken to try again: they may be told that
// their memory is gone, or fault where it is something else now.
func (t *task) apply(e uffd.Event) {
	if e.Kind == uffd.Fault {
		t.p.faults.push(fault{t, e.Addr &^ (pageSize - 1)})
		return
	}
	if t.quiet.Load() == t.version+1 {
		t.layout.settle()
	}
	t.version++
	switch e.Kind {
	case uffd.Fork:
		t.fork(e.FD)
		return
	case uffd.Remove:
		t.layout.remove(e.Addr, e.End)
	case uffd.Unmap:
		t.changed = true
		t.layout.unmap(e.Addr, e.End)
	case uffd.Remap:
		t.changed = true
		for _, s := range t.layout.remap(e.Addr, e.End, e.To) {
			t.p.again(t.origin, s.start, s.end)
		}
	default:
		return
	}
	_ = t.fd.Wake(e.Addr, e.End-e.Addr)
}

// fork makes a task of a child, with t.mu held for writing.
func (t *task) fork(fd int) {
	p := t.p
	child, err := p.newTask(t.origin, fd)
	if err == nil {
		child.forked, child.changed = true, true
		child.layout = t.layout.clone()
		for _, r := range t.wiped() {
			child.layout.remove(r.Start, r.End)
		}
		err = p.join(child)
	}
	switch {
	case err != nil:
		p.fail(fmt.Errorf("cannot serve the memory of a child of %s: %w", t, err))
	case len(t.layout.ghosts) > 0:
		p.fail(fmt.Errorf("cannot tell what memory a child of %s has: it was forked while other threads moved memory: restore without --lazy", t))
	}
	p.reap()
}

// wiped lists the memory that a child does not get, of a task that is forking one:
// the kernel gives the child zeros there (MADV_WIPEONFORK), and would ask the pager
// for them as for all other memory. The thread that forks waits meanwhile.
func (t *task) wiped() (ranges []proc.Range) {
	pid := t.host()
	if pid == 0 || len(t.layout.places) == 0 {
		return nil
	}
	maps, err := proc.Smaps(pid)
	if err != nil {
		return nil // it has been killed, and so has who forks
	}
	for i := range maps {
		if maps[i].Has("wf") {
			ranges = append(ranges, maps[i].Range)
		}
	}
	return ranges
}

func (t *task) String() string {
	if t.forked {
		return fmt.Sprintf("a child of process %d", t.origin)
	}
	return fmt.Sprintf("process %d", t.origin)
}

// host is the task's pid in this namespace, 0 if it is not known.
func (t *task) host() int {
	switch {
	case t.forked:
		return 0
	case t.p.o.HostPID != nil:
		return t.p.o.HostPID(t.origin)
	}
	return t.origin
}

// put copies pages to wherever the task has them now. src is their address in
// the checkpoint. Pages that the task no longer has, or has already, are passed
// over.
func (t *task) put(src uint64, data []byte) error {
	limit := uint64(len(data))
	if t.p.o.Lazy {
		limit = min(limit, lazyCopy)
	}
	for tries, absent := 0, 0; len(data) > 0; {
		skip, want, done, err := t.copy(src, data, limit)
		src, data = src+skip, data[skip:]
		if done > 0 {
			err = nil // what stopped it short, the next copy will say
		}
		step := uint64(done)
		if !errors.Is(err, unix.ENOENT) {
			absent = 0
		}
		switch {
		case err == nil:
			tries = 0
		case errors.Is(err, unix.EEXIST):
			step = pageSize
		case errors.Is(err, unix.EAGAIN):
			tries++
			t.settle(tries)
		case errors.Is(err, unix.ENOENT) && want > pageSize:
			limit = want / 2 &^ (pageSize - 1) // a copy must lie within one mapping
		case errors.Is(err, unix.ENOENT) && absent == 0:
			absent++ // the mapping may just be going: then it is EAGAIN the next time, or the event has been read
			t.settle(absent)
		case errors.Is(err, unix.ENOENT) && t.hasChanged():
			step, absent = pageSize, 0
		case isGone(err):
			t.p.end(t)
			return nil
		default:
			return t.refused(src, err)
		}
		src, data = src+step, data[step:]
		if t.p.stopping() {
			return nil
		}
	}
	return nil
}

// copy makes one copy from the start of data, or from the first page of it that
// the task has: skip bytes further on. Of the want bytes it tried, done are
// there. A task that has none of the pages, or has ended, skips all.
func (t *task) copy(src uint64, data []byte, limit uint64) (skip, want uint64, done int, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l := t.layout.sources
	i := l.after(src)
	if t.gone || i == len(l) || l[i].start >= src+uint64(len(data)) {
		return uint64(len(data)), 0, 0, nil
	}
	s := l[i].part(src, src+uint64(len(data)))
	skip, want = s.start-src, min(s.len(), limit)
	if end := t.bulk.end(s.to); end > 0 {
		want = min(s.len(), end-s.to)
		done, err = t.writeBulk(s.to, data[skip:skip+want])
		return skip, want, done, err
	}
	want = min(want, t.bulk.next(s.to)-s.to)
	done, err = t.fd.Copy(s.to, data[skip:skip+want], 0)
	if done > 0 || !errors.Is(err, unix.EAGAIN) {
		t.quiet.Store(t.version + 1) // else the kernel had refused
	}
	return skip, want, done, err
}

// refused makes the error for a copy that the kernel will not do.
func (t *task) refused(src uint64, err error) error {
	what := fmt.Errorf("cannot put the memory of %s at %#x in place: %w", t, src, err)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: CRIU has not armed that range: restore with CRIU's own engine, and report this", what)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("%w: free some memory, or raise the limit of its cgroup", what)
	case errors.Is(err, unix.EFAULT):
		return fmt.Errorf("%w: was the checkpoint's file truncated while it was read?", what)
	}
	return what
}

// isGone reports whether the address space has ended, by exit or exec. Before
// Linux 4.14 that was ENOSPC.
func isGone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOSPC) }

// settle gives a change of the mappings the chance to finish: its event is
// read, and the thread that waited for this has to run for a moment.
func (t *task) settle(tries int) {
	t.pump()
	if tries < 16 {
		runtime.Gosched()
		return
	}
	time.Sleep(min(time.Duration(tries)*time.Microsecond, time.Millisecond))
}

func (t *task) hasChanged() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.changed
}

// find says what the checkpoint has for a page of the task. With t.mu held.
func (t *task) find(addr uint64) (src uint64, block int, page uint32, kind image.Kind) {
	src, ok := t.layout.places.at(addr)
	if !ok {
		return 0, 0, 0, image.Absent
	}
	block, page, kind = t.p.src.Find(t.origin, src)
	return src, block, page, kind
}

// zero answers a fault where the checkpoint has no data. It reports false if
// there is data by now, moved there in the meantime.
func (t *task) zero(addr uint64) (bool, error) {
	for tries, run := 0, uint64(blankRun); ; {
		blank, err := t.zeroRun(addr, run)
		switch {
		case !blank:
			return false, nil
		case err == nil || errors.Is(err, unix.EEXIST):
			return true, nil
		case errors.Is(err, unix.EAGAIN):
			tries++
			t.settle(tries)
		case errors.Is(err, unix.ENOENT) && run > pageSize:
			run = pageSize // it crosses the end of a mapping
		case errors.Is(err, unix.ENOENT):
			return true, nil // unmapped: the thread that asked will find out
		case isGone(err):
			t.p.end(t)
			return true, nil
		default:
			return true, fmt.Errorf("cannot put a zero page into %s at %#x: %w", t, addr, err)
		}
		if t.p.stopping() {
			return true, nil
		}
	}
}

// zeroRun maps zero pages from addr on for up to run bytes, as far as there is no data.
func (t *task) zeroRun(addr, run uint64) (blank bool, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.gone {
		return true, nil
	}
	var n uint64
	for ; n < run; n += pageSize {
		if _, _, _, kind := t.find(addr + n); kind == image.Data {
			break
		}
	}
	if n == 0 {
		return false, nil
	}
	done, err := t.fd.ZeroPage(addr, n, 0)
	if done > 0 {
		err = nil // the page that was asked for is there
	}
	return true, err
}
