package plan

import (
	"math/bits"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// markBases finds the blocks that pages which are wanted are differences from. They are the parent's, or were moved from there.
func (p *Plan) markBases() {
	for s, t := range p.records.Shards {
		for i := range t.Blocks.Len() {
			if k := t.Blocks.at(i); k.kind == ondisk.KindDifferences {
				p.eachBase(p.base[s]+uint32(i), func(b ondisk.Base) { p.based[b.Block] = true })
			}
		}
	}
	if p.records.Parent == nil {
		return
	}
	for i := range p.records.Parent.BlockTable {
		if p.records.Parent.BlockTable[i].Kind == ondisk.KindDifferences {
			p.eachBase(uint32(p.own+i), func(b ondisk.Base) { p.based[b.Block] = true })
		}
	}
}

// eachBase calls f with what each wanted page of a block of differences differs from, in their order; the blocks are numbered as
// the plan does.
func (p *Plan) eachBase(number uint32, f func(b ondisk.Base)) {
	each := func(b ondisk.Base) {
		block, page := p.relocated(b)
		f(ondisk.Base{Block: block, Page: uint8(page)})
	}
	if number >= uint32(p.own) {
		c := p.records.Parent
		c.NeededBases(&c.BlockTable[number-uint32(p.own)], p.needed[number], each)
		return
	}
	t, from := p.shardOf(number)
	first := t.Blocks.at(int(number - from)).base
	for pages := p.needed[number]; pages != 0; pages &= pages - 1 {
		each(*t.bases.at(int(first) + bits.TrailingZeros64(pages)))
	}
}

// shardOf is the shard that one of our own blocks is in, and the number of its first: the last that begins at or before it. Of shards that begin at the same
// block, all but the last are empty.
func (p *Plan) shardOf(number uint32) (t *ShardRecords, first uint32) {
	s := len(p.base) - 1
	for p.base[s] > number {
		s--
	}
	return p.records.Shards[s], p.base[s]
}

// fillBases writes into the groups what differences differ from. That needs the places of all blocks in so many indexes.
func (p *Plan) fillBases(indexes int) {
	if len(p.deltas) == 0 {
		return
	}
	starts, total := make([]uint32, len(p.groups)), uint32(0)
	for index := range indexes {
		for i, g := range p.groups {
			if p.to[i] == index {
				starts[i] = total
				total += uint32(len(g.Blocks))
			}
		}
	}
	for _, number := range p.deltas {
		g := p.groups[p.spots[number].group]
		p.eachBase(number, func(b ondisk.Base) {
			at := p.spots[b.Block]
			g.Bases = append(g.Bases, ondisk.Base{Block: starts[at.group] + at.at, Page: b.Page})
		})
	}
}

// Format is the oldest format that has what the plan needs.
func (p *Plan) Format() int {
	if len(p.deltas) > 0 {
		return image.FormatVersion
	}
	return image.PlainVersion
}
