package image

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
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

// unread notes that a page of the parent could not be read.
func (w *Writer) unread(block int, p *oldPage, err error) {
	blocks := []uint32{uint32(block)}
	if p.lacksBase {
		blocks = append(blocks, p.full.block)
	}
	w.unreadable.add(err, blocks...)
}

// Unread returns how many blocks of the parent's memory or files could not be read to compare with them, and why the first could not
// be. What was put for them is stored whole.
func (w *Writer) Unread() (blocks int, why error) {
	w.unreadable.mu.Lock()
	defer w.unreadable.mu.Unlock()
	return len(w.unreadable.order) + int(w.unreadFiles.Load()), w.unreadable.first
}

// Lost lists the pages of a process that the parent has only in blocks that could not be read, but for the first so many of these that
// were found, and the number of all that were found: what to ask with next time. They are sorted and joined. Whoever has them should put
// them: Finish fails where the checkpoint would need one of those blocks.
func (w *Writer) Lost(pid, after int) (pages []Range, found int) {
	blocks := w.unreadable.found(after)
	if len(blocks) == 0 {
		return nil, after
	}
	c := w.parent
	i, ok := slices.BinarySearch(c.pids, pid)
	if !ok {
		return nil, after + len(blocks)
	}
	lost := map[uint32]bool{}
	for _, block := range blocks {
		lost[block] = true
	}
	for _, e := range c.extents[c.procs[i].from:c.procs[i].to] {
		for n := range uint64(e.pages) {
			if isLost(c.Tables, lost, e.block, e.first+uint8(n)) {
				pages = append(pages, Range{(e.page + n) * PageSize, (e.page + n + 1) * PageSize})
			}
		}
	}
	pages, _ = coalesce(pages) // what an index has makes sense
	return pages, after + len(blocks)
}

// isLost says whether a page of a block needs a block that is lost.
func isLost(c *Tables, lost map[uint32]bool, block uint32, page uint8) bool {
	if lost[block] {
		return true
	}
	k := &c.blocks[block]
	return k.kind == deltaBlock && lost[c.basesOf(k)[page].block]
}

// withoutLost takes out of what comes from the parent the pages that need a block that could not be read, and returns how many these are.
func (p *plan) withoutLost(claims []claim) (kept []claim, pages uint64) {
	if len(p.lost) == 0 {
		return claims, 0
	}
	for _, in := range claims {
		if in.block == zeroBlock {
			kept = append(kept, in)
			continue
		}
		from := uint64(0)
		cut := func(to uint64) {
			if from < to {
				kept = append(kept, claim{in.page + from, to - from, in.order, in.block, in.first + uint32(from)})
			}
		}
		for n := range in.pages {
			if isLost(p.w.parent.Tables, p.lost, in.block-uint32(p.own), uint8(in.first+uint32(n))) {
				cut(n)
				from = n + 1
				pages++
			}
		}
		cut(in.pages)
	}
	return kept, pages
}

// errLost says that the checkpoint would need what can't be read.
func (p *plan) errLost(pid int, pages uint64) error {
	_, why := p.w.Unread()
	return fmt.Errorf("%d pages of process %d were not written since the parent, and can't be read there: %w: %w: dump again without a parent", pages, pid, ErrLost, why)
}

// checkLost sees that nothing needs a block that could be read when pages were found equal to it, or little different from it, and can't
// be read any more.
func (p *plan) checkLost() error {
	for block := range p.lost {
		if at := uint32(p.own) + block; p.counts[at] > 0 || p.based[at] {
			_, why := p.w.Unread()
			return fmt.Errorf("a part of the parent that the checkpoint needs can't be read any more: %w: %w: dump again without a parent", ErrLost, why)
		}
	}
	return nil
}
