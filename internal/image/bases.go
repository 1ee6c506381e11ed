package image

import "math/bits"

// markBases finds the blocks that pages which are wanted are differences from. They are the parent's, or were moved from there.
func (p *plan) markBases() {
	for s, t := range p.records.shards {
		for i := range t.blocks.len() {
			if k := t.blocks.at(i); k.kind == deltaBlock {
				p.eachBase(p.base[s]+uint32(i), func(b base) { p.based[b.block] = true })
			}
		}
	}
	if p.records.parent == nil {
		return
	}
	for i := range p.records.parent.blocks {
		if p.records.parent.blocks[i].kind == deltaBlock {
			p.eachBase(uint32(p.own+i), func(b base) { p.based[b.block] = true })
		}
	}
}

// eachBase calls f with what each wanted page of a block of differences differs from, in their order; the blocks are numbered as
// the plan does.
func (p *plan) eachBase(number uint32, f func(b base)) {
	each := func(b base) {
		block, page := p.relocated(b)
		f(base{block, uint8(page)})
	}
	if number >= uint32(p.own) {
		c := p.records.parent
		c.neededBases(&c.blocks[number-uint32(p.own)], p.needed[number], each)
		return
	}
	t, from := p.shardOf(number)
	first := t.blocks.at(int(number - from)).base
	for pages := p.needed[number]; pages != 0; pages &= pages - 1 {
		each(*t.bases.at(int(first) + bits.TrailingZeros64(pages)))
	}
}

// shardOf is the shard that one of our own blocks is in, and the number of its first: the last that begins at or before it. Of shards that begin at the same
// block, all but the last are empty.
func (p *plan) shardOf(number uint32) (t *shardRecords, first uint32) {
	s := len(p.base) - 1
	for p.base[s] > number {
		s--
	}
	return p.records.shards[s], p.base[s]
}

// fillBases writes into the groups what differences differ from. That needs the places of all blocks in so many indexes.
func (p *plan) fillBases(indexes int) {
	if len(p.deltas) == 0 {
		return
	}
	starts, total := make([]uint32, len(p.groups)), uint32(0)
	for index := range indexes {
		for i, g := range p.groups {
			if p.to[i] == index {
				starts[i] = total
				total += uint32(len(g.blocks))
			}
		}
	}
	for _, number := range p.deltas {
		g := p.groups[p.spots[number].group]
		p.eachBase(number, func(b base) {
			at := p.spots[b.block]
			g.bases = append(g.bases, base{starts[at.group] + at.at, b.page})
		})
	}
}

// format is the oldest format that has what the plan needs.
func (p *plan) format() int {
	if len(p.deltas) > 0 {
		return FormatVersion
	}
	return plainVersion
}
