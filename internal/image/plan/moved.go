package plan

import (
	"cmp"
	"math/bits"
	"slices"

	"stasis/internal/image/ondisk"
)

// MovedOrder is the order of blocks whose pages were moved: what they are for follows from where they were.
const MovedOrder = ^uint64(0)

// Move says where a page of the parent's blocks is now.
type Move struct {
	From ondisk.Base // its block is counted as the parent does
	To   PageAt
}

func compareBases(a, b ondisk.Base) int {
	return cmp.Or(cmp.Compare(a.Block, b.Block), cmp.Compare(a.Page, b.Page))
}

// Moves is what was taken over, by where it was.
type Moves []Move

// Sort brings them into the order that of and has need.
func (m Moves) Sort() {
	slices.SortFunc(m, func(a, b Move) int { return compareBases(a.From, b.From) })
}

// of says where a page was moved.
func (m Moves) of(from ondisk.Base) (to PageAt, ok bool) {
	i, ok := slices.BinarySearchFunc(m, from, func(a Move, b ondisk.Base) int { return compareBases(a.From, b) })
	if !ok {
		return PageAt{}, false
	}
	return m[i].To, true
}

// has says whether any page of a block was moved.
func (m Moves) has(block uint32) bool {
	i, _ := slices.BinarySearchFunc(m, ondisk.Base{Block: block}, func(a Move, b ondisk.Base) int { return compareBases(a.From, b) })
	return i < len(m) && m[i].From.Block == block
}

// WantedOfParent returns for each of the parent's blocks a bit for each page that is wanted, for its own sake or as a base.
func (p *Plan) WantedOfParent() []uint64 {
	c := p.records.Parent
	wanted := slices.Clone(p.needed[p.own:])
	note := func(b ondisk.Base) { wanted[b.Block-uint32(p.own)] |= 1 << b.Page }
	for s, t := range p.records.Shards {
		for i := range t.Blocks.Len() {
			if t.Blocks.at(i).kind == ondisk.KindDifferences {
				p.eachBase(p.base[s]+uint32(i), note)
			}
		}
	}
	for i := range c.BlockTable {
		if c.BlockTable[i].Kind == ondisk.KindDifferences {
			p.eachBase(uint32(p.own+i), note)
		}
	}
	return wanted
}

// Least chooses the origins, counted as the parent does, that are to be needed no more: those of which the least would have to be
// moved. There are none as long as it needs no more than so many.
func (p *Plan) Least(wanted []uint64, most int) map[uint16]bool {
	c, costs := p.records.Parent, map[uint16]int64{}
	for i, pages := range wanted {
		if b := &c.BlockTable[i]; pages != 0 {
			costs[b.Origin] += int64(b.Stored) * int64(bits.OnesCount64(pages)) / int64(b.Pages)
		}
	}
	for _, f := range p.records.FileRefs {
		costs[f.Piece.Origin] += int64(f.Piece.Stored)
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
func (p *Plan) relocate(runs []claim) []claim {
	moved := p.records.Moved
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
			next.block, next.first = p.relocated(ondisk.Base{Block: r.block - uint32(p.own), Page: uint8(next.first)})
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
func (p *Plan) relocated(b ondisk.Base) (block, page uint32) {
	if to, ok := p.records.Moved.of(b); ok {
		return p.number(to), uint32(to.Page)
	}
	return uint32(p.own) + b.Block, uint32(b.Page)
}
