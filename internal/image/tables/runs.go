package tables

import (
	"iter"
	"slices"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// Runs visits all pages of a process that are in the checkpoint, by address. Neighbours that are kept alike are one run. Nothing but
// the index is needed for it.
func (t *Tables) Runs(pid int) iter.Seq[image.Run] {
	return func(yield func(image.Run) bool) {
		i, ok := slices.BinarySearch(t.PIDTable, pid)
		if !ok {
			return
		}
		var last image.Run
		add := func(r image.Run) bool {
			if last.End == r.Start && last.Zero == r.Zero && last.Origin == r.Origin && last.Delta == r.Delta {
				last.End = r.End
				return true
			}
			whole := last
			last = r
			return whole.Len() == 0 || yield(whole)
		}
		p := &t.Procs[i]
		zeros := p.Zeros
		for _, e := range t.Extents[p.From:p.To] {
			for start := e.Page * image.PageSize; len(zeros) > 0 && zeros[0].Start < start; zeros = zeros[1:] {
				if !add(image.Run{Range: zeros[0], Zero: true}) {
					return
				}
			}
			b := &t.BlockTable[e.Block]
			r := image.Range{Start: e.Page * image.PageSize, End: (e.Page + uint64(e.Pages)) * image.PageSize}
			if !add(image.Run{Range: r, Origin: int(b.Origin), Delta: b.Kind == ondisk.KindDifferences}) {
				return
			}
		}
		for _, z := range zeros {
			if !add(image.Run{Range: z, Zero: true}) {
				return
			}
		}
		if last.Len() > 0 {
			yield(last)
		}
	}
}

// FilePieces lists the pieces of one of CRIU's image files, in order; nil for a name that is not there.
func (t *Tables) FilePieces(name string) []image.FilePiece {
	i := slices.IndexFunc(t.FileTable, func(f image.FileInfo) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	out := make([]image.FilePiece, len(t.PieceTable[i]))
	for n, p := range t.PieceTable[i] {
		out[n] = image.FilePiece{Offset: p.Where, Len: int64(p.Raw), Origin: int(p.Origin)}
	}
	return out
}
