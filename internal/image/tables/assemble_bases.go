package tables

import (
	"math/bits"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// addBases fills in what pages of differences differ from. numbers are those of the blocks of pages and differences in the order
// of the indexes.
func (t *Tables) addBases(indexes []*ondisk.Index, numbers []uint32) error {
	var all []uint32 // number of each block of the indexes, those of files among them
	for _, x := range indexes {
		for _, g := range x.Groups {
			for _, k := range g.Blocks {
				if k.Kind == ondisk.KindFile {
					all = append(all, ondisk.NoBlock)
					continue
				}
				all = append(all, numbers[0])
				numbers = numbers[1:]
			}
		}
	}
	based, start := make([]bool, len(t.BlockTable)-t.Live), 0
	for shard, x := range indexes {
		for i := range x.Groups {
			g, why := &x.Groups[i], ""
			bases := g.Bases
			g.EachDelta(func(at int, pages uint64) {
				n := bits.OnesCount64(pages)
				if reason := t.addBasesOf(&t.BlockTable[all[start+at]], pages, bases[:n], all, based); reason != "" {
					why = reason
				}
				bases = bases[n:]
			})
			if why != "" {
				return t.nonsense(shard, why)
			}
			start += len(g.Blocks)
		}
	}
	for i, ok := range based {
		if !ok {
			return t.nonsense(0, "it has a block that nobody needs: "+image.ShardName(int(t.BlockTable[t.Live+i].Shard)))
		}
	}
	return nil
}

// addBasesOf fills in the bases of one block, those of the pages that are wanted, and marks in based the blocks that are nothing
// else. all has the number of each block of the indexes. It returns what can't be right with them.
func (t *Tables) addBasesOf(k *Block, pages uint64, bases []ondisk.Base, all []uint32, based []bool) (why string) {
	if t.format < image.FormatVersion {
		return "it has differences, which its format does not have"
	}
	k.Base = uint32(len(t.Bases))
	for range k.Pages {
		t.Bases = append(t.Bases, ondisk.Base{Block: ondisk.NoBlock})
	}
	for _, x := range bases {
		if int(x.Block) >= len(all) || all[x.Block] == ondisk.NoBlock {
			return "a difference is from a block that is not there"
		}
		number := all[x.Block]
		if of := &t.BlockTable[number]; of.Kind != ondisk.KindPages || x.Page >= of.Pages {
			return "a difference is from no page"
		}
		if int(number) >= t.Live {
			based[int(number)-t.Live] = true
		}
		t.Bases[int(k.Base)+bits.TrailingZeros64(pages)] = ondisk.Base{Block: number, Page: x.Page}
		pages &= pages - 1
	}
	return ""
}
