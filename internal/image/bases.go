package image

import "math/bits"

// markBases finds the blocks that pages which are wanted are differences from. They are the parent's, or were moved from there.
func (p *plan) markBases() {
	for s, t := range p.w.shards {
		for i := range t.blocks.len() {
			if k := t.blocks.at(i); k.kind == deltaBlock {
				p.eachBase(p.base[s]+uint32(i), func(b base) { p.based[b.block] = true })
			}
		}
	}
	if p.w.parent == nil {
		return
	}
	for i := range p.w.parent.blocks {
		if p.w.parent.blocks[i].kind == deltaBlock {
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
		c := p.w.parent
		c.neededBases(&c.blocks[number-uint32(p.own)], p.needed[number], each)
		return
	}
	t := p.shardOf(number)
	first := t.blocks.at(int(number - p.base[t.no])).base
	for pages := p.needed[number]; pages != 0; pages &= pages - 1 {
		each(*t.bases.at(int(first) + bits.TrailingZeros64(pages)))
	}
}

// shardOf is the shard that one of our own blocks is in: the last that begins at or before it. Of shards that begin at the same
// block, all but the last are empty.
func (p *plan) shardOf(number uint32) *shard {
	s := len(p.base) - 1
	for p.base[s] > number {
		s--
	}
	return p.w.shards[s]
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
			g.bases = append(g.bases, indexBase{starts[at.group] + at.at, b.page})
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

// addBases fills in what pages of differences differ from. numbers are those of the blocks of pages and differences in the order
// of the indexes.
func (c *Checkpoint) addBases(indexes []*index, numbers []uint32) error {
	var all []uint32 // number of each block of the indexes, those of files among them
	for _, x := range indexes {
		for _, g := range x.groups {
			for _, k := range g.blocks {
				if k.kind == fileBlock {
					all = append(all, noBlock)
					continue
				}
				all = append(all, numbers[0])
				numbers = numbers[1:]
			}
		}
	}
	based, start := make([]bool, len(c.blocks)-c.live), 0
	for shard, x := range indexes {
		for i := range x.groups {
			g, why := &x.groups[i], ""
			bases := g.bases
			g.eachDelta(func(at int, pages uint64) {
				n := bits.OnesCount64(pages)
				if reason := c.addBasesOf(&c.blocks[all[start+at]], pages, bases[:n], all, based); reason != "" {
					why = reason
				}
				bases = bases[n:]
			})
			if why != "" {
				return c.nonsense(shard, why)
			}
			start += len(g.blocks)
		}
	}
	for i, ok := range based {
		if !ok {
			return c.nonsense(0, "it has a block that nobody needs: "+ShardName(int(c.blocks[c.live+i].shard)))
		}
	}
	return nil
}

// addBasesOf fills in the bases of one block, those of the pages that are wanted, and marks in based the blocks that are nothing
// else. all has the number of each block of the indexes. It returns what can't be right with them.
func (c *Checkpoint) addBasesOf(k *block, pages uint64, bases []indexBase, all []uint32, based []bool) (why string) {
	if c.manifest.Format < FormatVersion {
		return "it has differences, which its format does not have"
	}
	k.base = uint32(len(c.bases))
	for range k.pages {
		c.bases = append(c.bases, base{block: noBlock})
	}
	for _, x := range bases {
		if int(x.block) >= len(all) || all[x.block] == noBlock {
			return "a difference is from a block that is not there"
		}
		number := all[x.block]
		if of := &c.blocks[number]; of.kind != pageBlock || x.page >= of.pages {
			return "a difference is from no page"
		}
		if int(number) >= c.live {
			based[int(number)-c.live] = true
		}
		c.bases[int(k.base)+bits.TrailingZeros64(pages)] = base{number, x.page}
		pages &= pages - 1
	}
	return ""
}
