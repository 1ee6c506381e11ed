package writer_test

import (
	"bytes"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/writer"
)

// TestFewPagesShareOne puts one content in very many pages: no block may bring all of them.
func TestFewPagesShareOne(t *testing.T) {
	var c imagetest.Chain
	const pages = 40 * image.MaxPages
	data := bytes.Repeat([]byte{0x5a}, pages*image.PageSize)
	want := imagetest.WithPages(7, 0, data)
	c.Add(t, writer.Options{}, image.KindFull, want, map[int][]image.Range{7: {imagetest.PagesOf(0, pages)}}, func(w *writer.Writer) {
		for i := range uint64(40) {
			imagetest.Put(t, w, 0, 7, data[:image.MaxBlock], image.Extent{Addr: i * image.MaxBlock, Pages: image.MaxPages})
		}
	})
	p := c.Open(t, 0)
	imagetest.CheckMemory(t, p, want)
	if p.Blocks() != pages/writer.MaxPagesShared {
		t.Errorf("there are %d blocks", p.Blocks())
	}
	for i := range p.Blocks() {
		if n := len(p.Block(i).Pieces); n > writer.MaxPagesShared {
			t.Errorf("block %d has %d pieces", i, n)
		}
	}
}
