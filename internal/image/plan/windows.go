package plan

import (
	"cmp"
	"maps"
	"slices"

	"stasis/internal/image"
)

// To find out which of many copies of a page counts, all copies have to be brought into the order of their addresses. That takes
// some 130 bytes for each run of pages, and a large process whose pages are written here and there has millions of them. So it is done
// for a part of its addresses at a time.

// window is a part of the addresses of a process, in pages.
type window struct {
	start, end uint64
	runs       int // about how many runs of pages there are in it
}

const (
	// WindowRuns is about how many runs of pages a window has, where it can be chosen.
	WindowRuns = 1 << 17
	// BucketPages is the unit in which windows are chosen: a window has at least so many pages.
	BucketPages = 128 << 20 / image.PageSize
)

// bucket is a unit of the addresses of a process.
type bucket struct {
	pid uint32
	at  uint64 // page / bucketPages
}

// windows divides the addresses of each process, all of them, by how many runs were put, and how many the parent has.
func (p *Plan) windows(pids []int) map[int][]window {
	count := map[bucket]int{}
	p.eachPut(func(pid uint32, c claim) { count[bucket{pid, c.page / BucketPages}]++ })
	if c := p.records.Parent; c != nil {
		for i, pid := range c.PIDTable {
			for _, e := range c.Extents[c.Procs[i].From:c.Procs[i].To] {
				count[bucket{uint32(pid), e.Page / BucketPages}]++
			}
		}
	}
	return divideWindows(pids, count, p.records.WindowRuns)
}

// divideWindows makes windows for each process, of at most so many runs where a bucket has no more. There is at least one.
func divideWindows(pids []int, count map[bucket]int, most int) map[int][]window {
	sorted := slices.SortedFunc(maps.Keys(count), func(a, b bucket) int {
		return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.at, b.at))
	})
	out := make(map[int][]window, len(pids))
	for _, pid := range pids {
		out[pid] = []window{{end: image.MaxAddr / image.PageSize}}
	}
	for _, b := range sorted {
		list := out[int(b.pid)]
		if list == nil {
			continue // that process has ended
		}
		last, n := &list[len(list)-1], count[b]
		if at := b.at * BucketPages; last.runs > 0 && last.runs+n > most {
			end := last.end
			last.end = at
			list = append(list, window{start: at, end: end})
			last = &list[len(list)-1]
		}
		last.runs += n
		out[int(b.pid)] = list
	}
	return out
}

// claims gathers what was put of a process, within a window.
func (p *Plan) claims(pid uint32, within window) []claim {
	out := make([]claim, 0, within.runs)
	p.eachPut(func(of uint32, c claim) {
		if of == pid && c.page < within.end && c.end() > within.start {
			out = append(out, c.cut(within))
		}
	})
	return out
}

// cut returns the part of a claim that is within a window.
func (c claim) cut(within window) claim {
	end := min(c.end(), within.end)
	if skip := within.start - c.page; c.page < within.start {
		c.page = within.start
		if c.block != zeroBlock {
			c.first += uint32(skip)
		}
	}
	c.pages = end - c.page
	return c
}

// eachPut visits all that was put, of every process.
func (p *Plan) eachPut(visit func(pid uint32, c claim)) {
	w := p.records
	for s, t := range w.Shards {
		for i := range t.Blocks.Len() {
			k := t.Blocks.at(i)
			if !k.claims() {
				continue
			}
			first := uint32(0)
			for e := range uint32(k.extents) {
				x := *t.extents.at(int(k.extent + e))
				visit(k.owner, claim{x.page(), uint64(x.pages()), k.order, p.base[s] + uint32(i), first})
				first += x.pages()
			}
		}
	}
	for i := range w.Zeros.Len() {
		z := w.Zeros.at(i)
		visit(z.PID, claim{z.Page, z.Pages, z.Order, zeroBlock, 0})
	}
	for i := range w.Refs.Len() {
		r := w.Refs.at(i)
		visit(r.PID, claim{r.Page, uint64(r.Pages), r.Order, p.number(r.At), uint32(r.At.Page)})
	}
}

// split cuts sorted ranges at a page.
func split(ranges []image.Range, page uint64) (before, rest []image.Range) {
	limit := page * image.PageSize
	i := 0
	for i < len(ranges) && ranges[i].End <= limit {
		i++
	}
	before, rest = ranges[:i:i], ranges[i:]
	if len(rest) > 0 && rest[0].Start < limit {
		before = append(before, image.Range{Start: rest[0].Start, End: limit})
		rest[0].Start = limit
	}
	return before, rest
}
