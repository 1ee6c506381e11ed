package writer

import (
	"math/rand/v2"
	"sync/atomic"

	"stasis/internal/image"
)

// worth decides which pages are worth comparing with the parent's. To compare one page, its block has to be read and decompressed; a
// program that rewrites whole pages gets nothing for that. So where the last pages that were compared gave nothing, only some of the
// parent's blocks are looked at: all pages of those, as the first of them costs nearly what all do. It may be used from several
// goroutines at once, and is a guess: whatever it says, the checkpoint is right.
//
// It knows how much longer to try in each region of 8 MiB, and for regions of which it knows nothing how it went elsewhere.
type worth struct {
	salt    uint64 // other blocks are looked at in each checkpoint
	all     atomic.Int64
	last    atomic.Int32          // for how many pages to try in a region of which nothing is known: as after the last gain elsewhere
	regions [1 << 12]atomic.Int32 // 0: nothing is known; givenUp; else for how many more pages to try
}

const (
	regionPages = 8 << 20 / image.PageSize
	givenUp     = -1
	// afterEqual and afterDelta are for how many pages to go on after one that was equal, or little different. Equal ones tell of
	// memory that nobody knows to be written: a stretch that was is mostly followed by one that was not.
	afterEqual, afterDelta = regionPages, 128
	// patience is how many pages may give nothing before regions that nobody knows are given up, too. gain is how many of these one
	// that gave something is worth.
	patience, gain = 4096, 16
	// looked is which part of the blocks is looked at where it was given up: each 16th.
	looked = 16
)

func newWorth() *worth {
	w := &worth{salt: rand.Uint64()}
	w.all.Store(patience)
	w.last.Store(afterDelta)
	return w
}

func (w *worth) region(pid int, page uint64) *atomic.Int32 {
	return &w.regions[mix(uint64(pid)<<40^page/regionPages)%uint64(len(w.regions))]
}

// mix spreads a number over all bits (the finish of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// try says whether to compare a page with the parent's, which is in that block.
func (w *worth) try(pid int, page uint64, block int) bool {
	left := w.region(pid, page).Load()
	if left > 0 || left == 0 && w.all.Load() > 0 {
		return true
	}
	return mix(uint64(block)^w.salt)%looked == 0
}

// gained notes that comparing a page saved storing it, and so will try the next pages.
func (w *worth) gained(pid int, page uint64, pages int32) {
	if r := w.region(pid, page); r.Load() < pages {
		r.Store(pages)
	}
	if w.last.Load() != pages {
		w.last.Store(pages)
	}
	if w.all.Load() < patience {
		w.all.Add(gain)
	}
}

// lost notes that comparing a page saved nothing.
func (w *worth) lost(pid int, page uint64) {
	r := w.region(pid, page)
	switch left := r.Load(); {
	case left == 0:
		r.Store(w.last.Load())
	case left == 1:
		r.Store(givenUp)
	case left > 1:
		r.Add(-1)
	}
	if w.all.Load() > 0 {
		w.all.Add(-1)
	}
}
