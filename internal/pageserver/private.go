package pageserver

import (
	"slices"
	"sort"
	"sync"

	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
)

// pageBlock is a block being filled or written.
type pageBlock struct {
	image.PageBlock
	space []byte
}

// packer gives full blocks to goroutines that compress and write them.
type packer struct {
	w       *writer.Writer
	free    chan *pageBlock
	full    chan *pageBlock
	workers sync.WaitGroup

	mu  sync.Mutex
	err error // guarded by mu: the first
}

func newPacker(w *writer.Writer, workers int) *packer {
	p := &packer{w: w, free: make(chan *pageBlock, 2*workers), full: make(chan *pageBlock, 2*workers)}
	for range cap(p.free) {
		p.free <- &pageBlock{space: make([]byte, image.MaxBlock)}
	}
	for range workers {
		p.workers.Go(p.work)
	}
	return p
}

func (p *packer) work() {
	for b := range p.full {
		if err := p.w.PutPages(0, b.PageBlock); err != nil {
			p.mu.Lock()
			if p.err == nil {
				p.err = err
			}
			p.mu.Unlock()
		}
		p.free <- b
	}
}

// failed returns the first error of the goroutines so far.
func (p *packer) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// take returns an empty block for a process.
func (p *packer) take(pid int) *pageBlock {
	b := <-p.free
	b.PID, b.Extents, b.Data = pid, b.Extents[:0], b.space[:0]
	return b
}

// end waits until all blocks are written.
func (p *packer) end() error {
	close(p.full)
	p.workers.Wait()
	return p.err
}

// private takes the memory of one process.
type private struct {
	pid     int
	pack    *packer
	block   *pageBlock    // being filled; nil: none
	inOwn   []image.Range // of the parent, sorted
	present []image.Range // what came so far, sorted and joined
	holes   []image.Range // what of it is the parent's, sorted
}

var _ sink = (*private)(nil)

// pages takes what follows in c.
func (p *private) pages(r image.Range, c *client) error {
	for addr := r.Start; addr < r.End; {
		if p.block == nil {
			p.block = p.pack.take(p.pid)
		}
		b := p.block
		at := len(b.Data)
		n := min(r.End-addr, uint64(image.MaxBlock-at))
		b.Data = b.space[:at+int(n)]
		if err := c.content(b.Data[at:]); err != nil {
			return err
		}
		b.add(addr, uint32(n/image.PageSize))
		addr += n
		if len(b.Data) == image.MaxBlock {
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	p.note(r)
	return nil
}

// add notes where further pages of the block belong.
func (b *pageBlock) add(addr uint64, pages uint32) {
	if n := len(b.Extents); n > 0 {
		if last := &b.Extents[n-1]; last.Addr+uint64(last.Pages)*image.PageSize == addr {
			last.Pages += pages
			return
		}
	}
	b.Extents = append(b.Extents, image.Extent{Addr: addr, Pages: pages})
}

func (p *private) flush() error {
	if p.block != nil {
		p.pack.full <- p.block
		p.block = nil
	}
	return p.pack.failed()
}

// hole takes a range whose pages are the parent's: nothing is copied, the Writer refers to them.
func (p *private) hole(r image.Range) error {
	i := sort.Search(len(p.inOwn), func(i int) bool { return p.inOwn[i].End > r.Start })
	if i == len(p.inOwn) || p.inOwn[i].Start > r.Start || p.inOwn[i].End < r.End {
		return missingHole(r)
	}
	p.note(r)
	p.holes = append(p.holes, r)
	return nil
}

func missingHole(r image.Range) error {
	return refuse("the pages at %#x-%#x are said to be in the parent, which lacks them: use the parent that this dump builds on, or none", r.Start, r.End)
}

func (p *private) note(r image.Range) {
	if n := len(p.present); n > 0 && p.present[n-1].End == r.Start {
		p.present[n-1].End = r.End
		return
	}
	p.present = append(p.present, r)
}

func (p *private) end() error { return p.flush() }

func (p *private) abort() {
	if p.block != nil {
		p.pack.free <- p.block
		p.block = nil
	}
}

// parentHas says whether a checkpoint has a pagemap.
func parentHas(parent *reader.Checkpoint, id pagemapID) bool {
	if parent == nil {
		return false
	}
	if !id.shared {
		return slices.Contains(parent.PIDs(), int(id.number))
	}
	return slices.ContainsFunc(parent.Files(), func(f image.FileInfo) bool { return f.Name == sharedName(id.number) })
}
