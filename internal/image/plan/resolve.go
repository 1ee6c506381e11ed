package plan

import (
	"container/heap"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/radix"
)

// zeroBlock stands for "no block, the pages are zero" where a block's number is expected.
const zeroBlock = ondisk.NoBlock

// claim says that a block (or zeroBlock) has pages of a process, as of its order. Pages are numbered by address / PageSize.
type claim struct {
	page  uint64
	pages uint64
	order uint64 // the highest counts
	block uint32 // counted through all shards
	first uint32 // number of the first page within the block's data
}

func (c *claim) end() uint64 { return c.page + c.pages }

// resolve cuts claims, of one process, into those that count: of every page in present that with the highest order. The
// result is sorted by address and without overlaps. gaps is what is present and in no claim. present is sorted, and its ranges
// don't touch; it is used up.
func resolve(claims []claim, present []image.Range) (kept []claim, gaps []image.Range) {
	sorted := make([]radix.Item, len(claims))
	for i := range claims {
		sorted[i] = radix.Item{Key: claims[i].page, At: uint32(i)}
	}
	sorted = radix.Sort(sorted)
	out := clipper{present: present, kept: make([]claim, 0, len(claims)+len(claims)/2)}
	var active claimHeap // those that reach beyond at, the newest first
	for next, at := 0, uint64(0); ; {
		for len(active) > 0 && active[0].end() <= at {
			heap.Pop(&active)
		}
		if len(active) == 0 {
			if next == len(sorted) {
				break
			}
			at = sorted[next].Key
		}
		for next < len(sorted) && sorted[next].Key <= at {
			heap.Push(&active, &claims[sorted[next].At])
			next++
		}
		for active[0].end() <= at {
			heap.Pop(&active)
		}
		top := active[0]
		until := top.end()
		if next < len(sorted) {
			until = min(until, sorted[next].Key)
		}
		out.take(claim{at, until - at, top.order, top.block, top.first + uint32(at-top.page)})
		at = until
	}
	return out.finish()
}

// claimHeap is a heap of claims whose first element has the highest order.
type claimHeap []*claim

func (h claimHeap) Len() int           { return len(h) }
func (h claimHeap) Less(i, j int) bool { return h[i].order > h[j].order }
func (h claimHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *claimHeap) Push(x any)        { *h = append(*h, x.(*claim)) }
func (h *claimHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// clipper keeps of claims that come in the order of their addresses what is present, joins what belongs together, and finds
// what is present and in no claim.
type clipper struct {
	present []image.Range // what is left of it
	kept    []claim
	gaps    []image.Range
}

func (c *clipper) take(in claim) {
	for len(c.present) > 0 {
		r := c.present[0]
		start, end := r.Start/image.PageSize, r.End/image.PageSize
		if start >= in.end() {
			return
		}
		c.miss(start, min(end, in.page))
		from, to := max(start, in.page), min(end, in.end())
		if from < to {
			first := in.first
			if in.block != zeroBlock {
				first += uint32(from - in.page)
			}
			c.add(claim{from, to - from, in.order, in.block, first})
		}
		if end > in.end() {
			c.present[0].Start = max(start, in.end()) * image.PageSize
			return
		}
		c.present = c.present[1:]
	}
}

// add appends a claim, or lengthens the last one where it goes on.
func (c *clipper) add(in claim) {
	if n := len(c.kept); n > 0 {
		last := &c.kept[n-1]
		goesOn := in.block == zeroBlock || last.first+uint32(last.pages) == in.first
		if last.end() == in.page && last.block == in.block && goesOn {
			last.pages += in.pages
			return
		}
	}
	if in.block == zeroBlock {
		in.first = 0
	}
	c.kept = append(c.kept, in)
}

func (c *clipper) miss(start, end uint64) {
	if start >= end {
		return
	}
	r := image.Range{Start: start * image.PageSize, End: end * image.PageSize}
	if n := len(c.gaps); n > 0 && c.gaps[n-1].End == r.Start {
		c.gaps[n-1].End = r.End
		return
	}
	c.gaps = append(c.gaps, r)
}

// finish returns what was kept, and what is present and was in no claim.
func (c *clipper) finish() (kept []claim, gaps []image.Range) {
	for _, r := range c.present {
		c.miss(r.Start/image.PageSize, r.End/image.PageSize)
	}
	return c.kept, c.gaps
}

// missingPages makes the error for pages that are present and were never captured; nil where there are none.
func missingPages(pid int, gaps []image.Range) error {
	if len(gaps) == 0 {
		return nil
	}
	e := &image.MissingError{PID: pid, First: gaps[0]}
	for _, r := range gaps {
		e.Pages += r.Len() / image.PageSize
	}
	return e
}
