package image

import "math/bits"

// sumUp fills in what the figures say of what is in the checkpoint.
func (t *Tables) sumUp(f *Figures) {
	f.BytesMemory, f.ZeroPages, f.BytesFiles, f.BytesReferenced, f.BytesShared = 0, 0, 0, 0, 0
	f.BytesDelta, f.BytesDeltaUsed = 0, 0
	own := int64(0)
	for _, e := range t.extents {
		n := int64(e.pages) * PageSize
		f.BytesMemory += n
		switch b := &t.blocks[e.block]; {
		case b.origin > 0:
			f.BytesReferenced += n
		case b.kind == deltaBlock:
			f.BytesDelta += n
		default:
			own += n
		}
	}
	f.BytesShared = own
	for i, pages := range t.wantedPages() {
		switch b := &t.blocks[i]; {
		case b.origin > 0:
		case b.kind == deltaBlock:
			f.BytesDeltaUsed += b.len()
		default:
			f.BytesShared -= int64(bits.OnesCount64(pages)) * PageSize
		}
	}
	for _, p := range t.procs {
		for _, z := range p.zeros {
			f.ZeroPages += int64(z.Len() / PageSize)
		}
	}
	f.BytesMemory += f.ZeroPages * PageSize
	for _, file := range t.files {
		f.BytesFiles += file.Size
	}
}
