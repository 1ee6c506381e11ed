package image

import (
	"cmp"
	"math/bits"
	"slices"
)

// Uses lists all blocks that the checkpoint needs, each once, sorted by origin, shard and offset. Pages that are only the base of
// a difference are needed as well. Every block is needed as a whole to be read, since its checksum covers all of it; Pages says
// what would have to be kept of it.
func (t *Tables) Uses() []Use {
	pages, all := t.neededPages(), t.allBlocks()
	out := make([]Use, len(all))
	for i, b := range all {
		out[i] = Use{Origin: int(b.origin), Shard: int(b.shard), Offset: b.off, Len: b.len(), File: b.kind == fileBlock}
		if b.number >= 0 {
			out[i].Pages = pages[b.number]
		}
	}
	return out
}

// neededPages returns for each block a bit for each of its pages that is needed.
func (t *Tables) neededPages() []uint64 {
	pages := t.wantedPages()
	for i := range t.blocks {
		if k := &t.blocks[i]; k.kind == deltaBlock {
			t.neededBases(k, pages[i], func(b base) { pages[b.block] |= 1 << b.page })
		}
	}
	return pages
}

// wantedPages returns for each block a bit for each of its pages that is somewhere in memory.
func (t *Tables) wantedPages() []uint64 {
	pages := make([]uint64, len(t.blocks))
	for _, e := range t.extents {
		pages[e.block] |= (1<<e.pages - 1) << e.first
	}
	return pages
}

// basesOf returns the bases of all pages of a block of differences.
func (t *Tables) basesOf(k *block) []base { return t.bases[k.base : k.base+uint32(k.pages)] }

// neededBases calls f with each base that is needed for some pages of a block, a bit for each, in the order of the pages.
func (t *Tables) neededBases(k *block, pages uint64, f func(b base)) {
	bases := t.basesOf(k)
	for ; pages != 0; pages &= pages - 1 {
		f(bases[bits.TrailingZeros64(pages)])
	}
}

// numbered is a block with its number among those of pages; -1 for one of a file.
type numbered struct {
	*block
	number int
}

// allBlocks lists the blocks of pages and files in the order in which they lie in their shards.
func (t *Tables) allBlocks() []numbered {
	all := make([]numbered, 0, len(t.blocks))
	for i := range t.blocks {
		all = append(all, numbered{&t.blocks[i], i})
	}
	for _, pieces := range t.filePieces {
		for i := range pieces {
			all = append(all, numbered{&pieces[i].block, -1})
		}
	}
	slices.SortFunc(all, func(a, b numbered) int {
		return cmp.Or(cmp.Compare(a.origin, b.origin), cmp.Compare(a.shard, b.shard), cmp.Compare(a.off, b.off))
	})
	return all
}

// wanted sums up the blocks that the index refers to, as stored, in bytes: all of them, and those that are in the checkpoint's
// own shards.
func (t *Tables) wanted() (all, own int64) {
	add := func(b *block) {
		all += b.len()
		if b.origin == 0 {
			own += b.len()
		}
	}
	for i := range t.blocks {
		add(&t.blocks[i])
	}
	for _, pieces := range t.filePieces {
		for i := range pieces {
			add(&pieces[i].block)
		}
	}
	return all, own
}
