package image

// Use is a block that a checkpoint needs: of its own shards, or of those of an ancestor. What of a shard is in no Use of any
// checkpoint that refers to it, and is not its header, index or footer, is needed by nobody.
type Use struct {
	Origin int    // 0: this checkpoint; else the number of an ancestor in the manifest's origins, counted from 1
	Shard  int    // number of the shard there
	Offset int64  // where the block begins in the shard, in bytes
	Len    int64  // of the whole block with its header and padding, in bytes
	File   bool   // it is a piece of one of CRIU's images
	Pages  uint64 // bit i: page i of the block is needed; 0 for pieces of files, which are needed as a whole
}

// Uses lists all blocks that the checkpoint needs, each once, sorted by origin, shard and offset. Pages that are only the base of
// a difference are needed as well. Every block is needed as a whole to be read, since its checksum covers all of it; Pages says
// what would have to be kept of it.
func (c *Checkpoint) Uses() []Use {
	pages, all := c.neededPages(), c.allBlocks()
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
func (c *Checkpoint) neededPages() []uint64 {
	pages := c.wantedPages()
	for i := range c.blocks {
		if k := &c.blocks[i]; k.kind == deltaBlock {
			c.neededBases(k, pages[i], func(b base) { pages[b.block] |= 1 << b.page })
		}
	}
	return pages
}

// wantedPages returns for each block a bit for each of its pages that is somewhere in memory.
func (c *Checkpoint) wantedPages() []uint64 {
	pages := make([]uint64, len(c.blocks))
	for _, e := range c.extents {
		pages[e.block] |= (1<<e.pages - 1) << e.first
	}
	return pages
}
