package plan

import (
	"fmt"
	"maps"
	"slices"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// Plan is what Finish makes of the blocks that it has: those that were put, shard by shard, and behind them the parent's.
// All of them are counted through by one number.
type Plan struct {
	records *Records
	base    []uint32        // number of the first block of each shard
	own     int             // how many blocks were put; the parent's follow
	counts  []uint32        // of each block's pieces
	needed  []uint64        // of each block, a bit for each page that is wanted for its own sake
	based   []bool          // of each block: a page of it is the base of one that is wanted
	live    []liveRuns      // what counts, until it is placed
	lost    map[uint32]bool // the parent's blocks that could not be read

	groups  []*ondisk.Group // one for each shard of our own, then those of ancestors
	to      []int           // index that each group goes to
	spots   []spot          // of each block
	deltas  []uint32        // the blocks of differences in groups, in the order in which they are there
	Origins []image.Origin
}

// spot is where a block is, and where its next piece goes.
type spot struct{ group, at, piece uint32 }

// liveRuns is what counts of a process, in no order.
type liveRuns struct {
	proc  int
	runs  list[liveRun]
	zeros []ondisk.ZeroRange
}

// liveRun is a claim that counts, of pages that are in a block.
type liveRun struct {
	page         uint64
	block        uint32
	pages, first uint8
}

// Indexes resolves what was put and what the parent has, and returns the index of each shard. Shard 0's has what belongs to no
// block. Where it is lenient, what is missing is left out.
func Indexes(w *Records, present map[int][]image.Range, lenient bool) ([]*ondisk.Index, *Plan, error) {
	pids := slices.Sorted(maps.Keys(present))
	if len(pids) > ondisk.MaxProcs {
		return nil, nil, fmt.Errorf("a checkpoint can't have %d processes, but %d at most: dump fewer at once", len(pids), ondisk.MaxProcs)
	}
	p, err := Make(w, present, lenient)
	if err != nil {
		return nil, nil, err
	}
	if err := p.layOut(); err != nil {
		return nil, nil, err
	}
	out := make([]*ondisk.Index, len(w.Shards))
	for i := range out {
		out[i] = &ondisk.Index{PIDs: pids}
	}
	out[0].Files = w.Files
	out[0].Zeros = p.place()
	p.live = nil // the largest table, and placed now
	p.fillBases(len(out))
	for i, g := range p.groups {
		x := out[p.to[i]]
		x.Groups = append(x.Groups, *g)
	}
	return out, p, nil
}

// Make finds out what counts of what was put and of what the parent has.
func Make(w *Records, present map[int][]image.Range, lenient bool) (*Plan, error) {
	p, err := newPlan(w)
	if err != nil {
		return nil, err
	}
	return p, p.resolve(slices.Sorted(maps.Keys(present)), present, lenient)
}

func newPlan(w *Records) (*Plan, error) {
	p := &Plan{records: w, base: make([]uint32, len(w.Shards))}
	for i, t := range w.Shards {
		p.base[i] = uint32(p.own)
		p.own += t.Blocks.Len()
	}
	total := p.own
	if w.Parent != nil {
		total += len(w.Parent.BlockTable)
	}
	if total >= int(zeroBlock) {
		return nil, fmt.Errorf("the checkpoint has %d blocks, more than can be counted: dump fewer processes at once", total)
	}
	p.lost = map[uint32]bool{}
	for _, block := range w.Lost {
		p.lost[block] = true
	}
	p.counts, p.needed, p.based = make([]uint32, total), make([]uint64, total), make([]bool, total)
	return p, nil
}

// resolve finds out of which block each page comes.
func (p *Plan) resolve(pids []int, present map[int][]image.Range, lenient bool) error {
	windows := p.windows(pids)
	for i, pid := range pids {
		want, err := image.Coalesce(present[pid])
		if err != nil {
			return err
		}
		p.live = append(p.live, liveRuns{proc: i})
		var missing []image.Range
		lost := uint64(0)
		for _, within := range windows[pid] {
			var part []image.Range
			part, want = split(want, within.end)
			kept, gaps := resolve(p.claims(uint32(pid), within), part)
			p.take(kept)
			if p.records.Parent != nil {
				var inherited []claim
				inherited, gaps = inherit(p.records.Parent, pid, gaps, uint32(p.own))
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
func (p *Plan) take(runs []claim) {
	runs = p.relocate(runs)
	live := &p.live[len(p.live)-1]
	for i := range runs {
		r := &runs[i]
		if r.block == zeroBlock {
			live.zeros = append(live.zeros, ondisk.ZeroRange{Proc: uint32(live.proc), Page: r.page, Pages: r.pages})
			continue
		}
		p.counts[r.block]++
		p.needed[r.block] |= (1<<r.pages - 1) << r.first
		live.runs.Add(liveRun{r.page, r.block, uint8(r.pages), uint8(r.first)})
	}
}

// number is that of the block that a page is in.
func (p *Plan) number(at PageAt) uint32 {
	if at.Home == InParent {
		return uint32(p.own) + at.Block
	}
	return p.base[at.Home] + at.Block
}

// layOut makes the groups, with room for their pieces, and decides which index each goes to.
func (p *Plan) layOut() error {
	p.spots = make([]spot, len(p.counts))
	p.markBases()
	if err := p.checkLost(); err != nil {
		return err
	}
	for no := range p.records.Shards {
		p.keepBlocks(no)
	}
	return p.refer()
}

// keepBlocks makes the group of a shard's blocks that have claims or are of files.
func (p *Plan) keepBlocks(no int) {
	t := p.records.Shards[no]
	pieces, from := 0, int(p.base[no])
	for _, n := range p.counts[from : from+t.Blocks.Len()] {
		pieces += int(n)
	}
	g := &ondisk.Group{Shard: uint32(no), Pieces: make([]ondisk.Piece, 0, pieces)}
	p.groups, p.to = append(p.groups, g), append(p.to, no)
	for i := range t.Blocks.Len() {
		k, number := t.Blocks.at(i), p.base[no]+uint32(i)
		b := ondisk.IndexBlock{Off: int64(k.off), Sum: k.sum, Stored: k.stored, Raw: k.raw, Kind: k.kind, Codec: k.codec, Heads: k.extents, Pages: k.pages}
		switch {
		case k.kind == ondisk.KindFile:
			b.File, b.Where = k.owner, k.order
			p.add(no, b, ondisk.NoBlock)
		case p.counts[number] > 0 || p.based[number]: // the latter only where it was moved
			p.add(no, b, number)
		}
	}
}

// add appends a block to a group. One of pages, which has a number, gets room for its pieces.
func (p *Plan) add(group int, b ondisk.IndexBlock, number uint32) {
	g := p.groups[group]
	if number != ondisk.NoBlock {
		b.Pieces = p.counts[number]
		p.spots[number] = spot{uint32(group), uint32(len(g.Blocks)), uint32(len(g.Pieces))}
		if b.Kind == ondisk.KindDifferences {
			p.deltas = append(p.deltas, number)
		}
		g.Pieces = slices.Grow(g.Pieces, int(b.Pieces))[:len(g.Pieces)+int(b.Pieces)]
	}
	g.Blocks = append(g.Blocks, b)
}

// place puts what counts into the pieces of their blocks, and returns the zero ranges.
func (p *Plan) place() []ondisk.ZeroRange {
	var zeros []ondisk.ZeroRange
	for i := range p.live {
		l := &p.live[i]
		zeros = append(zeros, l.zeros...)
		for n := range l.runs.Len() {
			r := l.runs.at(n)
			at := &p.spots[r.block]
			p.groups[at.group].Pieces[at.piece] = ondisk.Piece{Page: uint64(l.proc)<<ondisk.PageBits | r.page, Pages: r.pages, First: r.first}
			at.piece++
		}
	}
	return zeros
}
