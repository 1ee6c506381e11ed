package image

import (
	"bytes"
	"testing"
)

// TestFewPagesShareOne puts one content in very many pages: no block may bring all of them.
func TestFewPagesShareOne(t *testing.T) {
	var c chain
	const pages = 40 * MaxPages
	data := bytes.Repeat([]byte{0x5a}, pages*PageSize)
	want := withPages(7, 0, data)
	c.add(t, WriterOptions{}, KindFull, want, map[int][]Range{7: {pagesOf(0, pages)}}, func(w *Writer) {
		for i := range uint64(40) {
			put(t, w, 0, 7, data[:MaxBlock], Extent{i * MaxBlock, MaxPages})
		}
	})
	p := c.open(t, 0)
	checkMemory(t, p, want)
	if p.Blocks() != pages/maxPagesShared {
		t.Errorf("there are %d blocks", p.Blocks())
	}
	for i := range p.Blocks() {
		if n := len(p.Block(i).Pieces); n > maxPagesShared {
			t.Errorf("block %d has %d pieces", i, n)
		}
	}
}
