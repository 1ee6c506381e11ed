package capture

import (
	"slices"
	"sync"

	"stasis/internal/image"
)

// Buffer keeps the last pages of a frozen process in RAM, so that nothing is
// compressed or written while it is stopped. Past its limit blocks go straight
// to the sink behind it, and the process waits for that.
//
// Put may be called from several goroutines at once.
type Buffer struct {
	limit int
	sink  Sink

	mu       sync.Mutex
	blocks   []image.PageBlock // guarded by mu
	bytes    int               // guarded by mu
	overflow int               // guarded by mu
}

// NewBuffer makes a buffer of at most limit bytes in front of a sink.
func NewBuffer(limit int, sink Sink) *Buffer { return &Buffer{limit: limit, sink: sink} }

// Put keeps a copy of the block, or passes it on when the buffer is full.
func (b *Buffer) Put(block image.PageBlock) error {
	if !b.reserve(len(block.Data)) {
		return b.sink(block)
	}
	kept := image.PageBlock{
		PID:     block.PID,
		Extents: slices.Clone(block.Extents),
		Data:    slices.Clone(block.Data),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blocks = append(b.blocks, kept)
	return nil
}

func (b *Buffer) reserve(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes+n > b.limit {
		b.overflow += n
		return false
	}
	b.bytes += n
	return true
}

// Overflow is the number of bytes that did not fit and were written during the
// freeze.
func (b *Buffer) Overflow() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.overflow
}

// Drain hands what is kept to the sink, block by block, and frees it. It is
// called after the last Put.
func (b *Buffer) Drain() error {
	for i, block := range b.blocks {
		if err := b.sink(block); err != nil {
			return err
		}
		b.blocks[i] = image.PageBlock{}
	}
	b.blocks = nil
	return nil
}
