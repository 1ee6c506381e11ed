package image

import "math/bits"

// addBases fills in what pages of differences differ from. numbers are those of the blocks of pages and differences in the order
// of the indexes.
func (t *Tables) addBases(indexes []*index, numbers []uint32) error {
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
	based, start := make([]bool, len(t.blocks)-t.live), 0
	for shard, x := range indexes {
		for i := range x.groups {
			g, why := &x.groups[i], ""
			bases := g.bases
			g.eachDelta(func(at int, pages uint64) {
				n := bits.OnesCount64(pages)
				if reason := t.addBasesOf(&t.blocks[all[start+at]], pages, bases[:n], all, based); reason != "" {
					why = reason
				}
				bases = bases[n:]
			})
			if why != "" {
				return t.nonsense(shard, why)
			}
			start += len(g.blocks)
		}
	}
	for i, ok := range based {
		if !ok {
			return t.nonsense(0, "it has a block that nobody needs: "+ShardName(int(t.blocks[t.live+i].shard)))
		}
	}
	return nil
}

// addBasesOf fills in the bases of one block, those of the pages that are wanted, and marks in based the blocks that are nothing
// else. all has the number of each block of the indexes. It returns what can't be right with them.
func (t *Tables) addBasesOf(k *block, pages uint64, bases []base, all []uint32, based []bool) (why string) {
	if t.format < FormatVersion {
		return "it has differences, which its format does not have"
	}
	k.base = uint32(len(t.bases))
	for range k.pages {
		t.bases = append(t.bases, base{block: noBlock})
	}
	for _, x := range bases {
		if int(x.block) >= len(all) || all[x.block] == noBlock {
			return "a difference is from a block that is not there"
		}
		number := all[x.block]
		if of := &t.blocks[number]; of.kind != pageBlock || x.page >= of.pages {
			return "a difference is from no page"
		}
		if int(number) >= t.live {
			based[int(number)-t.live] = true
		}
		t.bases[int(k.base)+bits.TrailingZeros64(pages)] = base{number, x.page}
		pages &= pages - 1
	}
	return ""
}
