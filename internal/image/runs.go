package image

import (
	"iter"
	"slices"
)

// Runs visits all pages of a process that are in the checkpoint, by address. Neighbours that are kept alike are one run. Nothing but
// the index is needed for it.
func (t *Tables) Runs(pid int) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		i, ok := slices.BinarySearch(t.pids, pid)
		if !ok {
			return
		}
		var last Run
		add := func(r Run) bool {
			if last.End == r.Start && last.Zero == r.Zero && last.Origin == r.Origin && last.Delta == r.Delta {
				last.End = r.End
				return true
			}
			whole := last
			last = r
			return whole.Len() == 0 || yield(whole)
		}
		p := &t.procs[i]
		zeros := p.zeros
		for _, e := range t.extents[p.from:p.to] {
			for start := e.page * PageSize; len(zeros) > 0 && zeros[0].Start < start; zeros = zeros[1:] {
				if !add(Run{Range: zeros[0], Zero: true}) {
					return
				}
			}
			b := &t.blocks[e.block]
			r := Range{e.page * PageSize, (e.page + uint64(e.pages)) * PageSize}
			if !add(Run{Range: r, Origin: int(b.origin), Delta: b.kind == deltaBlock}) {
				return
			}
		}
		for _, z := range zeros {
			if !add(Run{Range: z, Zero: true}) {
				return
			}
		}
		if last.Len() > 0 {
			yield(last)
		}
	}
}

// FilePieces lists the pieces of one of CRIU's image files, in order; nil for a name that is not there.
func (t *Tables) FilePieces(name string) []FilePiece {
	i := slices.IndexFunc(t.files, func(f FileInfo) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	out := make([]FilePiece, len(t.filePieces[i]))
	for n, p := range t.filePieces[i] {
		out[n] = FilePiece{Offset: p.where, Len: int64(p.raw), Origin: int(p.origin)}
	}
	return out
}
