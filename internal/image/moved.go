package image

import (
	"cmp"
	"math/bits"
	"slices"
)

// movedOrder is the order of blocks whose pages were moved: what they are for follows from where they were.
const movedOrder = ^uint64(0)

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

// sort brings them into the order that of and has need.
func (m moves) sort() {
	slices.SortFunc(m, func(a, b move) int { return compareBases(a.from, b.from) })
}

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

// wantedOfParent returns for each of the parent's blocks a bit for each page that is wanted, for its own sake or as a base.
func (p *plan) wantedOfParent() []uint64 {
	c := p.records.parent
	wanted := slices.Clone(p.needed[p.own:])
	note := func(b base) { wanted[b.block-uint32(p.own)] |= 1 << b.page }
	for s, t := range p.records.shards {
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
// moved. There are none as long as it needs no more than so many.
func (p *plan) least(wanted []uint64, most int) map[uint16]bool {
	c, costs := p.records.parent, map[uint16]int64{}
	for i, pages := range wanted {
		if b := &c.blocks[i]; pages != 0 {
			costs[b.origin] += int64(b.stored) * int64(bits.OnesCount64(pages)) / int64(b.pages)
		}
	}
	for _, f := range p.records.fileRefs {
		costs[f.piece.origin] += int64(f.piece.stored)
	}
	if len(costs) <= most {
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
	for _, x := range sorted[:len(sorted)-most/2] {
		leave[x.origin] = true
	}
	return leave
}

// relocate puts the new places of pages that were moved into what counts.
func (p *plan) relocate(runs []claim) []claim {
	moved := p.records.moved
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
	if to, ok := p.records.moved.of(b); ok {
		return p.number(to), uint32(to.page)
	}
	return uint32(p.own) + b.block, uint32(b.page)
}
