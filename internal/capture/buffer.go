package capture

import (
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"stasis/internal/image"
)

// Buffer keeps the last pages of a process in RAM, so that nothing is compressed
// or written while it is frozen, or while it writes them anew. Past its limit
// blocks go straight to the sink behind it, and the process waits for that.
//
// Its memory is no part of Go's heap: that would be let grow to twice the size,
// and stay so after the pages are gone.
//
// Put may be called from several goroutines at once. The buffer has to be freed.
type Buffer struct {
	limit int
	sink  RoundSink

	mu       sync.Mutex
	blocks   []keptBlock // guarded by mu
	areas    [][]byte    // guarded by mu; mapped
	free     []byte      // guarded by mu; what is left of the last area
	bytes    int         // guarded by mu: what was kept
	overflow int         // guarded by mu
}

// RoundSink takes a block of a round, as [Sink] does.
type RoundSink func(round int, b image.PageBlock) error

type keptBlock struct {
	round int
	image.PageBlock
}

// areaBytes is how much memory a buffer takes at a time: some huge pages.
const areaBytes = 4 << 20

// NewBuffer makes a buffer of at most limit bytes in front of a sink.
func NewBuffer(limit int, sink RoundSink) *Buffer { return &Buffer{limit: limit, sink: sink} }

// Prepare gets memory for that many bytes, so that the process need not wait until
// the kernel has found and cleared it. It is called before the first Put, and
// does nothing where there is no memory to be had.
func (b *Buffer) Prepare(bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if bytes = min(bytes, b.limit-b.bytes); bytes > len(b.free) {
		b.more(bytes, unix.MAP_POPULATE)
	}
}

// Put keeps a copy of a block of a round, or passes it on when the buffer is full.
func (b *Buffer) Put(round int, block image.PageBlock) error {
	space := b.reserve(len(block.Data))
	if space == nil {
		return b.sink(round, block)
	}
	copy(space, block.Data)
	kept := image.PageBlock{PID: block.PID, Extents: append([]image.Extent(nil), block.Extents...), Data: space}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blocks = append(b.blocks, keptBlock{round, kept})
	return nil
}

// reserve returns space for n bytes, or nil where there is none.
func (b *Buffer) reserve(n int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes+n > b.limit || len(b.free) < n && !b.more(max(n, areaBytes), 0) {
		b.overflow += n
		return nil
	}
	space := b.free[:n:n]
	b.free = b.free[n:]
	b.bytes += n
	return space
}

// more takes another area; what is left of the last one is lost. b.mu is held.
func (b *Buffer) more(n, flags int) bool {
	area, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|flags)
	if err != nil {
		return false
	}
	b.areas, b.free = append(b.areas, area), area
	return true
}

// Room is how many bytes it takes before it is full.
func (b *Buffer) Room() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limit - b.bytes
}

// Overflow is the number of bytes that did not fit and were written instead.
func (b *Buffer) Overflow() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.overflow
}

// Drain hands what is kept to the sink, block by block, by one worker for each
// CPU, and frees it. Of a page that was put in several rounds it hands on the
// newest. It is called after the last Put. nice is as in Options.
func (b *Buffer) Drain(nice int) error {
	b.mu.Lock()
	blocks := newest(b.blocks)
	b.mu.Unlock()
	defer b.Free()
	var next atomic.Int64
	var workers errgroup.Group
	for range min(runtime.GOMAXPROCS(0), len(blocks)) {
		workers.Go(func() error {
			standBack(nice)
			for i := next.Add(1) - 1; i < int64(len(blocks)); i = next.Add(1) - 1 {
				if err := b.sink(blocks[i].round, blocks[i].PageBlock); err != nil {
					next.Store(int64(len(blocks)))
					return err
				}
			}
			return nil
		})
	}
	return workers.Wait()
}

// pageOf names a page of a process.
type pageOf struct {
	pid  int
	addr uint64
}

// newest takes the pages out of some blocks that a later round has put again. The
// blocks may be of several rounds; within one there is each page once.
func newest(blocks []keptBlock) []keptBlock {
	last, several := make(map[pageOf]int), false
	for _, b := range blocks {
		several = several || b.round != blocks[0].round
	}
	if !several {
		return blocks
	}
	for _, b := range blocks {
		b.pages(func(p pageOf, _ []byte) { last[p] = max(last[p], b.round) })
	}
	var left []keptBlock
	for _, b := range blocks {
		data, extents := b.Data[:0], []image.Extent(nil)
		b.pages(func(p pageOf, content []byte) {
			if last[p] > b.round {
				return
			}
			data = append(data, content...) // in place: never ahead of what is read
			if n := len(extents); n > 0 && extents[n-1].Addr+uint64(extents[n-1].Pages)*image.PageSize == p.addr {
				extents[n-1].Pages++
			} else {
				extents = append(extents, image.Extent{Addr: p.addr, Pages: 1})
			}
		})
		if len(data) > 0 {
			left = append(left, keptBlock{b.round, image.PageBlock{PID: b.PID, Extents: extents, Data: data}})
		}
	}
	return left
}

// pages visits the pages of a block.
func (b *keptBlock) pages(visit func(p pageOf, content []byte)) {
	data := b.Data
	for _, e := range b.Extents {
		for n := range uint64(e.Pages) {
			visit(pageOf{b.PID, e.Addr + n*image.PageSize}, data[:image.PageSize])
			data = data[image.PageSize:]
		}
	}
}

// Free gives the memory back, with what is kept in it. It does nothing the second
// time.
func (b *Buffer) Free() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, area := range b.areas {
		_ = unix.Munmap(area) // it was mapped
	}
	b.blocks, b.areas, b.free = nil, nil, nil
}
