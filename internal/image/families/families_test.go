package families_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/families"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/writer"
)

// TestFamiliesShareBlocks sees that pages with differences are neighbours of those without, where they are so in memory, and that pages
// whose bases are wanted too, or several times, are right.
func TestFamiliesShareBlocks(t *testing.T) {
	const pages = 100
	var c imagetest.Chain
	data := imagetest.Noise(pages * image.PageSize)
	c.Add(t, writer.Options{}, image.KindFull, imagetest.WithPages(7, 0, bytes.Clone(data)), map[int][]image.Range{7: {imagetest.PagesOf(0, pages)}}, func(w *writer.Writer) {
		imagetest.Put(t, w, 0, 7, data[:image.MaxBlock], image.Extent{Addr: 0, Pages: image.MaxPages})
		imagetest.Put(t, w, 0, 7, data[image.MaxBlock:], image.Extent{Addr: image.MaxBlock, Pages: pages - image.MaxPages})
	})
	// Every third page changes a little.
	want := c[0].Content.Clone()
	c.Add(t, writer.Options{}, image.KindFull, want, map[int][]image.Range{7: {imagetest.PagesOf(0, pages)}}, func(w *writer.Writer) {
		for page := uint64(0); page < pages; page += 3 {
			changed := bytes.Clone(want[7][page])
			changed[page]++
			want.Set(7, page, changed)
			imagetest.Put(t, w, 0, 7, changed, image.Extent{Addr: page * image.PageSize, Pages: 1})
		}
	})
	f := families.Of(c.Open(t, 1))
	imagetest.CheckMemory(t, c.Open(t, 1), want)
	if f.Blocks() != 2 || len(f.Block(0).Pieces) != 1 || f.Block(0).Pieces[0].Pages != image.MaxPages {
		t.Errorf("there are %d families, the first is %+v", f.Blocks(), f.Block(0))
	}
}

// TestFamiliesOfEqualPages changes pages that were equal, and so were stored once, each in its own way: all are differences from that
// one, more than a family has room for.
func TestFamiliesOfEqualPages(t *testing.T) {
	const pages = 250
	var c imagetest.Chain
	present, one := map[int][]image.Range{7: {imagetest.PagesOf(0, pages)}}, imagetest.Noise(image.PageSize)
	c.Add(t, writer.Options{}, image.KindFull, imagetest.WithPages(7, 0, bytes.Repeat(one, pages)), present, func(w *writer.Writer) {
		for page := range uint64(pages) {
			imagetest.Put(t, w, 0, 7, one, image.Extent{Addr: page * image.PageSize, Pages: 1})
		}
	})
	for kept, number := range map[uint64]int{0: 3, pages / 2: 1} { // the page itself is still wanted, or not
		want := c[0].Content.Clone()
		c := c[:1:1]
		c.Add(t, writer.Options{}, image.KindFull, want, present, func(w *writer.Writer) {
			for page := kept; page < pages; page++ {
				changed := bytes.Clone(one)
				binary.LittleEndian.PutUint64(changed[page*8:], page)
				want.Set(7, page, changed)
				imagetest.Put(t, w, 0, 7, changed, image.Extent{Addr: page * image.PageSize, Pages: 1})
			}
		})
		p := c.Open(t, 1)
		if got := p.Manifest().Figures.BytesDelta; got != int64(pages-kept)*image.PageSize {
			t.Fatalf("%d bytes are differences", got)
		}
		imagetest.CheckMemory(t, p, want)
		f := families.Of(p)
		for i := range f.Blocks() {
			if n := f.Block(i).Raw; n > 2*image.MaxBlock {
				t.Errorf("family %d has %d bytes", i, n)
			}
		}
		if f.Blocks() != number {
			t.Errorf("there are %d families instead of %d", f.Blocks(), number)
		}
	}
}

// TestDeltaCacheIsBounded takes and adds more than there is room for, in any order.
