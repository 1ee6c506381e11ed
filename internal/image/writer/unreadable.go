package writer

import (
	"slices"
	"sync"
	"sync/atomic"

	"stasis/internal/image"
	"stasis/internal/image/plan"
	"stasis/internal/image/reader"
)

// unreadable is the blocks of the parent that were to be compared with and could not be read. What is put is stored then; but what else
// lies in them is lost, and may be put as well, as long as there is somebody who has it.
type unreadable struct {
	some  atomic.Bool
	mu    sync.Mutex
	known map[uint32]bool // guarded by mu
	order []uint32        // guarded by mu: the same, in the order in which they were found
	first error           // guarded by mu
}

func (u *unreadable) has(block uint32) bool {
	if !u.some.Load() {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.known[block]
}

// add notes blocks that could not be read, and why.
func (u *unreadable) add(err error, blocks ...uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil {
		u.known = map[uint32]bool{}
	}
	for _, block := range blocks {
		if !u.known[block] {
			u.known[block], u.order = true, append(u.order, block)
		}
	}
	if u.first == nil {
		u.first = err
	}
	u.some.Store(true)
}

// found returns the blocks but for the first so many.
func (u *unreadable) found(after int) []uint32 {
	if !u.some.Load() {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.order[min(after, len(u.order)):])
}

// all returns the blocks, and why the first that was found could not be read.
func (u *unreadable) all() (blocks []uint32, why error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.order), u.first
}

// unread notes that a page of the parent could not be read.
func (w *Writer) unread(block int, p *reader.Page, err error) {
	blocks := []uint32{uint32(block)}
	if p.LacksBase {
		blocks = append(blocks, p.Full.Block)
	}
	w.unreadable.add(err, blocks...)
}

// Unread returns how many blocks of the parent's memory or files could not be read to compare with them, and why the first could not
// be. What was put for them is stored whole.
func (w *Writer) Unread() (blocks int, why error) {
	all, why := w.unreadable.all()
	return len(all) + int(w.unreadFiles.Load()), why
}

// Lost lists the pages of a process that the parent has only in blocks that could not be read, but for the first so many of these that
// were found, and the number of all that were found: what to ask with next time. They are sorted and joined. Whoever has them should put
// them: Finish fails where the checkpoint would need one of those blocks.
func (w *Writer) Lost(pid, after int) (pages []image.Range, found int) {
	blocks := w.unreadable.found(after)
	if len(blocks) == 0 {
		return nil, after
	}
	c := w.parent
	i, ok := slices.BinarySearch(c.PIDTable, pid)
	if !ok {
		return nil, after + len(blocks)
	}
	lost := map[uint32]bool{}
	for _, block := range blocks {
		lost[block] = true
	}
	for _, e := range c.Extents[c.Procs[i].From:c.Procs[i].To] {
		for n := range uint64(e.Pages) {
			if plan.IsLost(c.Tables, lost, e.Block, e.First+uint8(n)) {
				pages = append(pages, image.Range{Start: (e.Page + n) * image.PageSize, End: (e.Page + n + 1) * image.PageSize})
			}
		}
	}
	pages, _ = image.Coalesce(pages) // what an index has makes sense
	return pages, after + len(blocks)
}
