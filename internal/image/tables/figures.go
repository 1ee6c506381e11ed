package tables

import (
	"math/bits"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// SumUp fills in what the figures say of what is in the checkpoint.
func (t *Tables) SumUp(f *image.Figures) {
	f.BytesMemory, f.ZeroPages, f.BytesFiles, f.BytesReferenced, f.BytesShared = 0, 0, 0, 0, 0
	f.BytesDelta, f.BytesDeltaUsed = 0, 0
	own := int64(0)
	for _, e := range t.Extents {
		n := int64(e.Pages) * image.PageSize
		f.BytesMemory += n
		switch b := &t.BlockTable[e.Block]; {
		case b.Origin > 0:
			f.BytesReferenced += n
		case b.Kind == ondisk.KindDifferences:
			f.BytesDelta += n
		default:
			own += n
		}
	}
	f.BytesShared = own
	for i, pages := range t.WantedPages() {
		switch b := &t.BlockTable[i]; {
		case b.Origin > 0:
		case b.Kind == ondisk.KindDifferences:
			f.BytesDeltaUsed += b.Len()
		default:
			f.BytesShared -= int64(bits.OnesCount64(pages)) * image.PageSize
		}
	}
	for _, p := range t.Procs {
		for _, z := range p.Zeros {
			f.ZeroPages += int64(z.Len() / image.PageSize)
		}
	}
	f.BytesMemory += f.ZeroPages * image.PageSize
	for _, file := range t.FileTable {
		f.BytesFiles += file.Size
	}
}
