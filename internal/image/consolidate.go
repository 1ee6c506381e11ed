package image

import (
	"cmp"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// A checkpoint of a long chain would refer to all of its ancestors: each has some pages that nobody wrote since. Whoever restores
// it would have to find, hold and open all of them. So a Writer takes pages over: what the checkpoint needs of the ancestors that
// it needs least of is written once more, into its own shards. A difference stays one, from the same base, so that it costs its few
// bytes. As many ancestors go at once, each page is moved a number of times that grows with the logarithm of the chain's length only.
const (
	// MaxOrigins is the most ancestors that a checkpoint refers to, unless WriterOptions say otherwise. Only where a part of one
	// can't be read it may be more: what can't be read can't be moved. When it would be more, half as many stay.
	MaxOrigins = 32

	// movedOrder is the order of blocks whose pages were moved: what they are for follows from where they were.
	movedOrder = ^uint64(0)
)

// move says where a page of the parent's blocks is now.
type move struct {
	from base // its block is counted as the parent does
	to   pageAt
}

func compareBases(a, b base) int {
	return cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(a.page, b.page))
}

// moves is what was taken over, by where it was.
type moves []move

// of says where a page was moved.
func (m moves) of(from base) (to pageAt, ok bool) {
	i, ok := slices.BinarySearchFunc(m, from, func(a move, b base) int { return compareBases(a.from, b) })
	if !ok {
		return pageAt{}, false
	}
	return m[i].to, true
}

// has says whether any page of a block was moved.
func (m moves) has(block uint32) bool {
	i, _ := slices.BinarySearchFunc(m, base{block: block}, func(a move, b base) int { return compareBases(a.from, b) })
	return i < len(m) && m[i].from.block == block
}

// consolidate sees that the checkpoint, as it would become, refers to no more ancestors than it may.
func (w *Writer) consolidate(present map[int][]Range, lenient bool) error {
	c := w.parent
	if c == nil || w.insteadOf || len(c.manifest.Origins) < w.maxOrigins { // one more: the parent itself
		return nil
	}
	p, err := w.planned(present, lenient)
	if err != nil {
		return err
	}
	wanted := p.wantedOfParent()
	leave := p.least(wanted)
	if len(leave) == 0 {
		return nil
	}
	var blocks []uint32
	for i := range c.blocks {
		if wanted[i] != 0 && leave[c.blocks[i].origin] {
			blocks = append(blocks, uint32(i))
		}
	}
	slices.SortFunc(blocks, func(a, b uint32) int {
		x, y := &c.blocks[a], &c.blocks[b]
		return cmp.Or(cmp.Compare(x.origin, y.origin), cmp.Compare(x.shard, y.shard), cmp.Compare(x.off, y.off))
	})
	if err := w.moveBlocks(blocks, wanted); err != nil {
		return err
	}
	return w.moveFiles(leave)
}

// wantedOfParent returns for each of the parent's blocks a bit for each page that is wanted, for its own sake or as a base.
func (p *plan) wantedOfParent() []uint64 {
	c := p.w.parent
	wanted := slices.Clone(p.needed[p.own:])
	note := func(b base) { wanted[b.block-uint32(p.own)] |= 1 << b.page }
	for s, t := range p.w.shards {
		for i := range t.blocks.len() {
			if t.blocks.at(i).kind == deltaBlock {
				p.eachBase(p.base[s]+uint32(i), note)
			}
		}
	}
	for i := range c.blocks {
		if c.blocks[i].kind == deltaBlock {
			p.eachBase(uint32(p.own+i), note)
		}
	}
	return wanted
}

// least chooses the origins, counted as the parent does, that are to be needed no more: those of which the least would have to be
// moved. There are none as long as it needs no more than it may.
func (p *plan) least(wanted []uint64) map[uint16]bool {
	c, costs := p.w.parent, map[uint16]int64{}
	for i, pages := range wanted {
		if b := &c.blocks[i]; pages != 0 {
			costs[b.origin] += int64(b.stored) * int64(bits.OnesCount64(pages)) / int64(b.pages)
		}
	}
	for _, f := range p.w.fileRefs {
		costs[f.piece.origin] += int64(f.piece.stored)
	}
	if len(costs) <= p.w.maxOrigins {
		return nil
	}
	type cost struct {
		origin uint16
		bytes  int64
	}
	sorted := make([]cost, 0, len(costs))
	for origin, bytes := range costs {
		sorted = append(sorted, cost{origin, bytes})
	}
	slices.SortFunc(sorted, func(a, b cost) int { return cmp.Or(cmp.Compare(a.bytes, b.bytes), cmp.Compare(a.origin, b.origin)) })
	leave := map[uint16]bool{}
	for _, x := range sorted[:len(sorted)-p.w.maxOrigins/2] {
		leave[x.origin] = true
	}
	return leave
}

// moveRun is how many blocks in a row one worker moves, so that what was together stays together.
const moveRun = 64

// moveBlocks writes the wanted pages of some of the parent's blocks once more. What can't be read stays where it is.
func (w *Writer) moveBlocks(blocks []uint32, wanted []uint64) error {
	workers := min(runtime.NumCPU(), (len(blocks)+moveRun-1)/moveRun)
	movers := make([]mover, workers)
	errs := make([]error, workers)
	var next atomic.Int64
	var crew sync.WaitGroup
	for i := range movers {
		crew.Go(func() {
			m := &movers[i]
			m.w, m.s = w, new(scratch)
			for errs[i] == nil {
				from := int(next.Add(moveRun)) - moveRun
				if from >= len(blocks) {
					errs[i] = m.flush()
					return
				}
				for _, block := range blocks[from:min(from+moveRun, len(blocks))] {
					if errs[i] = m.move(block, wanted[block]); errs[i] != nil {
						return
					}
				}
			}
		})
	}
	crew.Wait()
	for i := range movers {
		if errs[i] != nil {
			return errs[i]
		}
		w.moved = append(w.moved, movers[i].moved...)
	}
	slices.SortFunc(w.moved, func(a, b move) int { return compareBases(a.from, b.from) })
	return nil
}

// moveFiles writes the pieces of CRIU's images once more that are in those origins.
func (w *Writer) moveFiles(leave map[uint16]bool) error {
	s := new(scratch)
	stay := w.fileRefs[:0]
	for _, f := range w.fileRefs {
		if leave[f.piece.origin] {
			data, err := w.parent.readPayload(&f.piece.block, &s.file, false)
			if err == nil {
				where := uint64(f.piece.where)
				if _, err := w.put(s, blockHead{kind: fileBlock, owner: f.file, fileOff: where}, data, where); err != nil {
					return err
				}
				continue
			}
		}
		stay = append(stay, f)
	}
	w.fileRefs = stay
	return nil
}

// mover writes pages of the parent once more. It belongs to one goroutine.
type mover struct {
	w     *Writer
	s     *scratch
	moved moves

	buffer  Buffer
	delta   deltaPages
	pid     uint32 // of what is collected
	extents []Extent
	data    []byte // pages that are collected; differences are in s.delta
	from    []base // of data
	fromOf  []base // of s.delta
}

// move takes over some pages of a block.
func (m *mover) move(number uint32, wanted uint64) error {
	c := m.w.parent
	k := &c.blocks[number]
	data, err := c.readPayload(k, &m.buffer, false)
	if err == nil && k.kind == deltaBlock {
		err = m.delta.parse(data, int(k.pages))
	}
	var pid uint32
	var at [MaxPages]uint64
	if err == nil {
		pid, err = c.headOf(k, &at)
	}
	if err != nil {
		return nil //nolint:nilerr // it is not moved: whoever needs it finds it as damaged as before
	}
	if pid != m.pid {
		if err := m.flush(); err != nil {
			return err
		}
		m.pid = pid
	}
	for ; wanted != 0; wanted &= wanted - 1 {
		page := uint8(bits.TrailingZeros64(wanted))
		from := base{number, page}
		if k.kind == deltaBlock {
			err = m.addDelta(from, at[page], c.basesOf(k)[page])
		} else {
			err = m.addPage(from, at[page], data[int(page)*PageSize:][:PageSize])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *mover) addPage(from base, at uint64, content []byte) error {
	if len(m.from) == MaxPages {
		if err := m.flushPages(); err != nil {
			return err
		}
	}
	m.extents, m.data, m.from = appendPage(m.extents, at), append(m.data, content...), append(m.from, from)
	return nil
}

func (m *mover) addDelta(from base, at uint64, of base) error {
	d := &m.s.delta
	if len(m.fromOf) == MaxPages || d.full(of) {
		if err := m.flushDeltas(); err != nil {
			return err
		}
	}
	begin, end := m.delta.span(int(from.page))
	d.addEncoded(at, of, m.delta.numbers[begin.number:end.number], m.delta.literals[begin.literal:end.literal])
	m.fromOf = append(m.fromOf, from)
	return nil
}

func (m *mover) flush() error {
	if err := m.flushPages(); err != nil {
		return err
	}
	return m.flushDeltas()
}

func (m *mover) flushPages() error {
	err := m.put(pageBlock, m.extents, m.data, m.from)
	m.extents, m.data, m.from = m.extents[:0], m.data[:0], m.from[:0]
	return err
}

func (m *mover) flushDeltas() error {
	d := &m.s.delta
	m.s.packed = append(append(m.s.packed[:0], d.numbers...), d.literals...)
	err := m.put(deltaBlock, d.extents, m.s.packed, m.fromOf)
	d.reset()
	m.fromOf = m.fromOf[:0]
	return err
}

// put writes a block and notes what was moved into it.
func (m *mover) put(kind blockKind, extents []Extent, data []byte, from []base) error {
	if len(from) == 0 {
		return nil
	}
	at, err := m.w.put(m.s, blockHead{kind: kind, owner: m.pid, extents: extents}, data, movedOrder)
	if err != nil {
		return err
	}
	for i, f := range from {
		m.moved = append(m.moved, move{f, at.after(uint8(i))})
	}
	return nil
}

// relocate puts the new places of pages that were moved into what counts.
func (p *plan) relocate(runs []claim) []claim {
	moved := p.w.moved
	if len(moved) == 0 {
		return runs
	}
	out := make([]claim, 0, len(runs)+len(runs)/4)
	for _, r := range runs {
		if r.block == zeroBlock || r.block < uint32(p.own) || !moved.has(r.block-uint32(p.own)) {
			out = append(out, r)
			continue
		}
		for n := range r.pages {
			next := claim{r.page + n, 1, r.order, r.block, r.first + uint32(n)}
			next.block, next.first = p.relocated(base{r.block - uint32(p.own), uint8(next.first)})
			if i := len(out) - 1; i >= 0 && out[i].end() == next.page && out[i].block == next.block && out[i].first+uint32(out[i].pages) == next.first {
				out[i].pages++
			} else {
				out = append(out, next)
			}
		}
	}
	return out
}

// relocated is where a page of the parent's blocks is, as the plan counts blocks.
func (p *plan) relocated(b base) (block, page uint32) {
	if to, ok := p.w.moved.of(b); ok {
		return p.number(to), uint32(to.page)
	}
	return uint32(p.own) + b.block, uint32(b.page)
}
