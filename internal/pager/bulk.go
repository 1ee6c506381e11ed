//go:build linux && (amd64 || arm64)

package pager

import (
	"math"
	"os"
	"sort"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
)

// hugePage is the size of a transparent huge page with 4 KiB base pages.
const hugePage = 2 << 20

// bulk is the ranges of a stopped task that are written to instead of copied
// by userfaultfd: those that the kernel backs with huge pages. UFFDIO_COPY
// makes small pages only; a plain write faults a huge one in, which is about
// twice as fast and gives the program back what it had. Only whole huge pages
// that the checkpoint has in full are taken, so that the task does not grow.
//
// They are disarmed before, so this is only for a tree that can't run, and only
// where no page is yet: unlike a copy, a write would replace a page that CRIU
// has put there. Disarming a part splits its mapping, until the rest is disarmed.
type bulk []image.Range

// end is the end of the range that has addr, 0 if there is none.
func (b bulk) end(addr uint64) uint64 {
	if i := b.after(addr); i < len(b) && b[i].Start <= addr {
		return b[i].End
	}
	return 0
}

// next is where the next range starts.
func (b bulk) next(addr uint64) uint64 {
	if i := b.after(addr); i < len(b) {
		return b[i].Start
	}
	return math.MaxUint64
}

func (b bulk) after(addr uint64) int {
	return sort.Search(len(b), func(i int) bool { return b[i].End > addr })
}

// add appends a range, joined with the one before if they touch.
func (b *bulk) add(r image.Range) {
	if n := len(*b); n > 0 && (*b)[n-1].End == r.Start {
		(*b)[n-1].End = r.End
		return
	}
	*b = append(*b, r)
}

// planBulk decides what is written in bulk, before the workers run. Where it
// can't be found out, nothing is: the slower way is always open.
func (p *Pager) planBulk() {
	mode := hugeMode()
	if mode == "never" {
		return
	}
	for _, t := range p.current() {
		if pid := t.host(); pid != 0 {
			t.planBulk(pid, mode)
		}
	}
}

// planBulk holds the lock for writing: no copy that began before may find its
// range disarmed, nor put a page where none was seen.
func (t *task) planBulk(pid int, mode string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone || t.changed {
		return
	}
	t.bulkPID = pid
	maps, err := proc.Smaps(pid)
	if err != nil {
		return
	}
	for i := range maps {
		m := &maps[i]
		ranges := wholeEmpty(pid, t.candidates(m, mode))
		if t.keepWhole(m, ranges) != nil {
			continue
		}
		for _, r := range ranges {
			if t.fd.Unregister(r.Start, r.Len()) == nil {
				t.bulk.add(r)
			}
		}
	}
}

// keepWhole sees to it that a mapping of which only some ranges are disarmed is
// one again when all of it is. That touches the page table of one page, which must
// be in none of the ranges: the kernel puts no huge page where there is a table.
func (t *task) keepWhole(m *proc.Mapping, ranges []image.Range) error {
	if len(ranges) == 0 {
		return nil
	}
	rest := m.Start
	for _, r := range ranges {
		if rest < r.Start {
			break
		}
		rest = r.End
	}
	if rest >= m.End {
		return nil // it is disarmed as a whole
	}
	return t.fd.PrepareAnon(rest)
}

// hugeMode is the system's setting for transparent huge pages: always, madvise or never.
func hugeMode() string {
	raw, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil {
		return "never"
	}
	_, mode, _ := strings.Cut(string(raw), "[")
	mode, _, _ = strings.Cut(mode, "]")
	return mode
}

// candidates are the runs of whole huge pages of a mapping that the checkpoint
// has in full, if it is armed, writable, and may have huge pages. Being armed proves
// that the process with that pid is the one meant.
func (t *task) candidates(m *proc.Mapping, mode string) []image.Range {
	if !m.Anonymous() || !m.Private() || !m.Has("um") || !strings.HasPrefix(m.Perms, "rw") ||
		m.Has("nh") || m.Has("lo") || mode == "madvise" && !m.Has("hg") {
		return nil
	}
	var out []image.Range
	l := t.layout.places
	for n := l.after(m.Start); n < len(l) && l[n].start < m.End; n++ {
		s := l[n].part(m.Start, m.End)
		start, end := (s.start+hugePage-1)&^(hugePage-1), s.end&^(hugePage-1)
		if start < end {
			out = append(out, image.Range{Start: start, End: end})
		}
	}
	return out
}

// wholeEmpty is what remains of ranges without the huge pages of which some part is there already.
func wholeEmpty(pid int, ranges []image.Range) []image.Range {
	if len(ranges) == 0 {
		return nil
	}
	pages, err := proc.OpenPagemap(pid)
	if err != nil {
		return nil
	}
	defer pages.Close()
	var out []image.Range
	for _, r := range ranges {
		at := r.Start
		upTo := func(end uint64) {
			if at < end {
				out = append(out, image.Range{Start: at, End: end})
			}
		}
		err := pages.Scan(proc.Range{Start: r.Start, End: r.End}, func(there proc.Run) {
			upTo(there.Start &^ (hugePage - 1))
			at = max(at, (there.End+hugePage-1)&^(hugePage-1))
		})
		if err != nil {
			return nil
		}
		upTo(r.End)
	}
	return out
}

// writeBulk writes to a disarmed range of a stopped task.
func (t *task) writeBulk(addr uint64, data []byte) (int, error) {
	local := []unix.Iovec{{Base: unsafe.SliceData(data), Len: uint64(len(data))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(data)}}
	return unix.ProcessVMWritev(t.bulkPID, local, remote, 0)
}

// disarm lets the kernel serve the memory of a task that stands still again, now
// rather than when the last copy of the userfaultfd is closed. Where it fails,
// closing does it.
func (t *task) disarm() {
	pid := t.host()
	if pid == 0 {
		return
	}
	maps, err := proc.Maps(pid)
	if err != nil {
		return
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	for i := range maps {
		if m := &maps[i]; !t.gone && m.Anonymous() && m.Private() {
			_ = t.fd.Unregister(m.Start, m.Len())
		}
	}
}
