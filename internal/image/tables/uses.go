package tables

import (
	"cmp"
	"math/bits"
	"slices"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// Uses lists all blocks that the checkpoint needs, each once, sorted by origin, shard and offset. Pages that are only the base of
// a difference are needed as well. Every block is needed as a whole to be read, since its checksum covers all of it; Pages says
// what would have to be kept of it.
func (t *Tables) Uses() []image.Use {
	pages, all := t.neededPages(), t.AllBlocks()
	out := make([]image.Use, len(all))
	for i, b := range all {
		out[i] = image.Use{Origin: int(b.Origin), Shard: int(b.Shard), Offset: b.Off, Len: b.Len(), File: b.Kind == ondisk.KindFile}
		if b.number >= 0 {
			out[i].Pages = pages[b.number]
		}
	}
	return out
}

// neededPages returns for each block a bit for each of its pages that is needed.
func (t *Tables) neededPages() []uint64 {
	pages := t.WantedPages()
	for i := range t.BlockTable {
		if k := &t.BlockTable[i]; k.Kind == ondisk.KindDifferences {
			t.NeededBases(k, pages[i], func(b ondisk.Base) { pages[b.Block] |= 1 << b.Page })
		}
	}
	return pages
}

// WantedPages returns for each block a bit for each of its pages that is somewhere in memory.
func (t *Tables) WantedPages() []uint64 {
	pages := make([]uint64, len(t.BlockTable))
	for _, e := range t.Extents {
		pages[e.Block] |= (1<<e.Pages - 1) << e.First
	}
	return pages
}

// BasesOf returns the bases of all pages of a block of differences.
func (t *Tables) BasesOf(k *Block) []ondisk.Base { return t.Bases[k.Base : k.Base+uint32(k.Pages)] }

// NeededBases calls f with each base that is needed for some pages of a block, a bit for each, in the order of the pages.
func (t *Tables) NeededBases(k *Block, pages uint64, f func(b ondisk.Base)) {
	bases := t.BasesOf(k)
	for ; pages != 0; pages &= pages - 1 {
		f(bases[bits.TrailingZeros64(pages)])
	}
}

// numbered is a block with its number among those of pages; -1 for one of a file.
type numbered struct {
	*Block
	number int
}

// AllBlocks lists the blocks of pages and files in the order in which they lie in their shards.
func (t *Tables) AllBlocks() []numbered {
	all := make([]numbered, 0, len(t.BlockTable))
	for i := range t.BlockTable {
		all = append(all, numbered{&t.BlockTable[i], i})
	}
	for _, pieces := range t.PieceTable {
		for i := range pieces {
			all = append(all, numbered{&pieces[i].Block, -1})
		}
	}
	slices.SortFunc(all, func(a, b numbered) int {
		return cmp.Or(cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Off, b.Off))
	})
	return all
}

// Wanted sums up the blocks that the index refers to, as stored, in bytes: all of them, and those that are in the checkpoint's
// own shards.
func (t *Tables) Wanted() (all, own int64) {
	add := func(b *Block) {
		all += b.Len()
		if b.Origin == 0 {
			own += b.Len()
		}
	}
	for i := range t.BlockTable {
		add(&t.BlockTable[i])
	}
	for _, pieces := range t.PieceTable {
		for i := range pieces {
			add(&pieces[i].Block)
		}
	}
	return all, own
}
