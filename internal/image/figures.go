package image

import "math/bits"

// sumUp fills in what the figures say of what is in the checkpoint.
func (c *Checkpoint) sumUp(f *Figures) {
	f.BytesMemory, f.ZeroPages, f.BytesFiles, f.BytesReferenced, f.BytesShared = 0, 0, 0, 0, 0
	f.BytesDelta, f.BytesDeltaUsed = 0, 0
	own := int64(0)
	for _, e := range c.extents {
		n := int64(e.pages) * PageSize
		f.BytesMemory += n
		switch b := &c.blocks[e.block]; {
		case b.origin > 0:
			f.BytesReferenced += n
		case b.kind == deltaBlock:
			f.BytesDelta += n
		default:
			own += n
		}
	}
	f.BytesShared = own
	for i, pages := range c.wantedPages() {
		switch b := &c.blocks[i]; {
		case b.origin > 0:
		case b.kind == deltaBlock:
			f.BytesDeltaUsed += b.len()
		default:
			f.BytesShared -= int64(bits.OnesCount64(pages)) * PageSize
		}
	}
	for _, p := range c.procs {
		for _, z := range p.zeros {
			f.ZeroPages += int64(z.Len() / PageSize)
		}
	}
	f.BytesMemory += f.ZeroPages * PageSize
	for _, file := range c.files {
		f.BytesFiles += file.Size
	}
}

// wanted sums up the blocks that the index refers to, as stored, in bytes: all of them, and those that are in the checkpoint's
// own shards.
func (c *Checkpoint) wanted() (all, own int64) {
	add := func(b *block) {
		all += b.len()
		if b.origin == 0 {
			own += b.len()
		}
	}
	for i := range c.blocks {
		add(&c.blocks[i])
	}
	for _, pieces := range c.filePieces {
		for i := range pieces {
			add(&pieces[i].block)
		}
	}
	return all, own
}
