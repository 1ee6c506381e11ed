package families

import (
	"sync"

	"stasis/internal/image/delta"
)

// deltaCache keeps differences that were read and not used yet. Those of neighbours in memory can be in hundreds of blocks, one of
// each checkpoint of a chain, and each of these has differences from all over the memory.
type deltaCache struct {
	mu    sync.Mutex
	kept  map[uint32]*keptDeltas // guarded by mu; by the number of the block
	order []*keptDeltas          // guarded by mu; in no order
	bytes int                    // guarded by mu: about what it takes
	turn  uint64                 // guarded by mu: makes the choice of whom to drop
}

// keptDeltas is a block of differences without those that nobody wants. But for left and place it is never changed.
type keptDeltas struct {
	delta.Pages
	number uint32
	pages  uint64 // a bit for each page of the block that is here
	left   uint64 // guarded by deltaCache.mu: those that were not used yet
	place  int    // guarded by deltaCache.mu: in deltaCache.order
}

// maxDeltas is about how many bytes a deltaCache takes at most.
const maxDeltas = 32 << 20

func (d *keptDeltas) size() int {
	const beside = 250 // the struct and its place in map and list
	return beside + d.Size()
}

// take returns a block that has a page, which is going to be used; nil where it is not here.
func (c *deltaCache) take(number uint32, page uint8) *keptDeltas {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.kept[number]
	if d != nil {
		c.use(d, page)
	}
	return d
}

// add takes over a block that was read for the sake of a page, which is going to be used.
func (c *deltaCache) add(d *keptDeltas, page uint8) {
	if d.left == 1<<page {
		return // nothing else is wanted of it
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept[d.number] != nil {
		return // somebody else read it at the same time
	}
	if c.kept == nil {
		c.kept = map[uint32]*keptDeltas{}
	}
	for len(c.order) > 0 && c.bytes+d.size() > maxDeltas {
		c.drop(c.any())
	}
	d.place = len(c.order)
	c.kept[d.number], c.order = d, append(c.order, d)
	c.bytes += d.size()
	c.use(d, page)
}

// use notes that a page is used, and drops a block of which nothing is left. c.mu is held.
func (c *deltaCache) use(d *keptDeltas, page uint8) {
	if d.left &^= 1 << page; d.left == 0 {
		c.drop(d)
	}
}

// any chooses one by chance: memory is read in the order of addresses, so that all blocks come round again and again, and the one that
// was used last is as far from its next use as any. c.mu is held.
func (c *deltaCache) any() *keptDeltas {
	c.turn = c.turn*6364136223846793005 + 1442695040888963407
	return c.order[(c.turn>>33)%uint64(len(c.order))]
}

// drop forgets one. c.mu is held.
func (c *deltaCache) drop(d *keptDeltas) {
	last := c.order[len(c.order)-1]
	c.order[d.place], last.place = last, d.place
	c.order[len(c.order)-1] = nil
	c.order = c.order[:len(c.order)-1]
	delete(c.kept, d.number)
	c.bytes -= d.size()
}
