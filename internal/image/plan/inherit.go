package plan

import (
	"slices"
	"sort"

	"stasis/internal/image"
	"stasis/internal/image/tables"
)

// inherit returns what the parent has of gaps in a process, and what is left of them. Its blocks are numbered from first.
// As its tables are sorted already, this takes a few nanoseconds for each of its extents.
func inherit(c *tables.Tables, pid int, gaps []image.Range, first uint32) (kept []claim, left []image.Range) {
	i, ok := slices.BinarySearch(c.PIDTable, pid)
	if !ok || len(gaps) == 0 {
		return nil, gaps
	}
	p := &c.Procs[i]
	out := clipper{present: gaps, kept: make([]claim, 0, min(p.To-p.From, WindowRuns))}
	zeros := p.Zeros
	takeZeros := func(before uint64) {
		for len(zeros) > 0 && zeros[0].Start < before {
			out.take(claim{page: zeros[0].Start / image.PageSize, pages: zeros[0].Len() / image.PageSize, block: zeroBlock})
			zeros = zeros[1:]
		}
	}
	from := sort.Search(p.To-p.From, func(i int) bool {
		e := &c.Extents[p.From+i]
		return e.Page+uint64(e.Pages) > gaps[0].Start/image.PageSize
	})
	for _, e := range c.Extents[p.From+from : p.To] {
		if len(out.present) == 0 {
			break
		}
		takeZeros(e.Page * image.PageSize)
		out.take(claim{page: e.Page, pages: uint64(e.Pages), block: first + e.Block, first: uint32(e.First)})
	}
	takeZeros(image.MaxAddr)
	return out.finish()
}
