package image

import (
	"fmt"
	"maps"
	"slices"
)

// plan is what Finish makes of the blocks that it has: those that were put, shard by shard, and behind them the parent's.
// All of them are counted through by one number.
type plan struct {
	records *records
	base    []uint32        // number of the first block of each shard
	own     int             // how many blocks were put; the parent's follow
	counts  []uint32        // of each block's pieces
	needed  []uint64        // of each block, a bit for each page that is wanted for its own sake
	based   []bool          // of each block: a page of it is the base of one that is wanted
	live    []liveRuns      // what counts, until it is placed
	lost    map[uint32]bool // the parent's blocks that could not be read

	groups  []*group // one for each shard of our own, then those of ancestors
	to      []int    // index that each group goes to
	spots   []spot   // of each block
	deltas  []uint32 // the blocks of differences in groups, in the order in which they are there
	origins []Origin
}

// spot is where a block is, and where its next piece goes.
type spot struct{ group, at, piece uint32 }

// liveRuns is what counts of a process, in no order.
type liveRuns struct {
	proc  int
	runs  list[liveRun]
	zeros []zeroRange
}

// liveRun is a claim that counts, of pages that are in a block.
type liveRun struct {
	page         uint64
	block        uint32
	pages, first uint8
}

// makeIndexes resolves what was put and what the parent has, and returns the index of each shard. Shard 0's has what belongs to no
// block. Where it is lenient, what is missing is left out.
func makeIndexes(w *records, present map[int][]Range, lenient bool) ([]*index, *plan, error) {
	pids := slices.Sorted(maps.Keys(present))
	if len(pids) > maxProcs {
		return nil, nil, fmt.Errorf("a checkpoint can't have %d processes, but %d at most: dump fewer at once", len(pids), maxProcs)
	}
	p, err := makePlan(w, present, lenient)
	if err != nil {
		return nil, nil, err
	}
	if err := p.layOut(); err != nil {
		return nil, nil, err
	}
	out := make([]*index, len(w.shards))
	for i := range out {
		out[i] = &index{pids: pids}
	}
	out[0].files = w.files
	out[0].zeros = p.place()
	p.live = nil // the largest table, and placed now
	p.fillBases(len(out))
	for i, g := range p.groups {
		x := out[p.to[i]]
		x.groups = append(x.groups, *g)
	}
	return out, p, nil
}

// makePlan finds out what counts of what was put and of what the parent has.
func makePlan(w *records, present map[int][]Range, lenient bool) (*plan, error) {
	p, err := newPlan(w)
	if err != nil {
		return nil, err
	}
	return p, p.resolve(slices.Sorted(maps.Keys(present)), present, lenient)
}

func newPlan(w *records) (*plan, error) {
	p := &plan{records: w, base: make([]uint32, len(w.shards))}
	for i, t := range w.shards {
		p.base[i] = uint32(p.own)
		p.own += t.blocks.len()
	}
	total := p.own
	if w.parent != nil {
		total += len(w.parent.blocks)
	}
	if total >= int(zeroBlock) {
		return nil, fmt.Errorf("the checkpoint has %d blocks, more than can be counted: dump fewer processes at once", total)
	}
	p.lost = map[uint32]bool{}
	for _, block := range w.lost {
		p.lost[block] = true
	}
	p.counts, p.needed, p.based = make([]uint32, total), make([]uint64, total), make([]bool, total)
	return p, nil
}

// resolve finds out of which block each page comes.
func (p *plan) resolve(pids []int, present map[int][]Range, lenient bool) error {
	windows := p.windows(pids)
	for i, pid := range pids {
		want, err := coalesce(present[pid])
		if err != nil {
			return err
		}
		p.live = append(p.live, liveRuns{proc: i})
		var missing []Range
		lost := uint64(0)
		for _, within := range windows[pid] {
			var part []Range
			part, want = split(want, within.end)
			kept, gaps := resolve(p.claims(uint32(pid), within), part)
			p.take(kept)
			if p.records.parent != nil {
				var inherited []claim
				inherited, gaps = inherit(p.records.parent, pid, gaps, uint32(p.own))
				inherited, unreadable := p.withoutLost(inherited)
				lost += unreadable
				p.take(inherited)
			}
			missing = append(missing, gaps...)
		}
		if lost > 0 && !lenient {
			return p.errLost(pid, lost)
		}
		if err := missingPages(pid, missing); err != nil && !lenient {
			return err
		}
	}
	return nil
}

// take adds to what counts of the last process.
func (p *plan) take(runs []claim) {
	runs = p.relocate(runs)
	live := &p.live[len(p.live)-1]
	for i := range runs {
		r := &runs[i]
		if r.block == zeroBlock {
			live.zeros = append(live.zeros, zeroRange{uint32(live.proc), r.page, r.pages})
			continue
		}
		p.counts[r.block]++
		p.needed[r.block] |= (1<<r.pages - 1) << r.first
		live.runs.add(liveRun{r.page, r.block, uint8(r.pages), uint8(r.first)})
	}
}

// number is that of the block that a page is in.
func (p *plan) number(at pageAt) uint32 {
	if at.home == inParent {
		return uint32(p.own) + at.block
	}
	return p.base[at.home] + at.block
}

// layOut makes the groups, with room for their pieces, and decides which index each goes to.
func (p *plan) layOut() error {
	p.spots = make([]spot, len(p.counts))
	p.markBases()
	if err := p.checkLost(); err != nil {
		return err
	}
	for no := range p.records.shards {
		p.keepBlocks(no)
	}
	return p.refer()
}

// keepBlocks makes the group of a shard's blocks that have claims or are of files.
func (p *plan) keepBlocks(no int) {
	t := p.records.shards[no]
	pieces, from := 0, int(p.base[no])
	for _, n := range p.counts[from : from+t.blocks.len()] {
		pieces += int(n)
	}
	g := &group{shard: uint32(no), pieces: make([]extent, 0, pieces)}
	p.groups, p.to = append(p.groups, g), append(p.to, no)
	for i := range t.blocks.len() {
		k, number := t.blocks.at(i), p.base[no]+uint32(i)
		b := indexBlock{off: int64(k.off), sum: k.sum, stored: k.stored, raw: k.raw, kind: k.kind, codec: k.codec, heads: k.extents, pages: k.pages}
		switch {
		case k.kind == fileBlock:
			b.file, b.where = k.owner, k.order
			p.add(no, b, noBlock)
		case p.counts[number] > 0 || p.based[number]: // the latter only where it was moved
			p.add(no, b, number)
		}
	}
}

// add appends a block to a group. One of pages, which has a number, gets room for its pieces.
func (p *plan) add(group int, b indexBlock, number uint32) {
	g := p.groups[group]
	if number != noBlock {
		b.pieces = p.counts[number]
		p.spots[number] = spot{uint32(group), uint32(len(g.blocks)), uint32(len(g.pieces))}
		if b.kind == deltaBlock {
			p.deltas = append(p.deltas, number)
		}
		g.pieces = slices.Grow(g.pieces, int(b.pieces))[:len(g.pieces)+int(b.pieces)]
	}
	g.blocks = append(g.blocks, b)
}

// place puts what counts into the pieces of their blocks, and returns the zero ranges.
func (p *plan) place() []zeroRange {
	var zeros []zeroRange
	for i := range p.live {
		l := &p.live[i]
		zeros = append(zeros, l.zeros...)
		for n := range l.runs.len() {
			r := l.runs.at(n)
			at := &p.spots[r.block]
			p.groups[at.group].pieces[at.piece] = extent{page: uint64(l.proc)<<pageBits | r.page, pages: r.pages, first: r.first}
			at.piece++
		}
	}
	return zeros
}
