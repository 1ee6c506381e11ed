package image

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// TestFamiliesShareBlocks sees that pages with differences are neighbours of those without, where they are so in memory, and that pages
// whose bases are wanted too, or several times, are right.
func TestFamiliesShareBlocks(t *testing.T) {
	const pages = 100
	var c chain
	data := noise(pages * PageSize)
	c.add(t, WriterOptions{}, KindFull, withPages(7, 0, bytes.Clone(data)), map[int][]Range{7: {pagesOf(0, pages)}}, func(w *Writer) {
		put(t, w, 0, 7, data[:MaxBlock], Extent{0, MaxPages})
		put(t, w, 0, 7, data[MaxBlock:], Extent{MaxBlock, pages - MaxPages})
	})
	// Every third page changes a little.
	want := c[0].memory.clone()
	c.add(t, WriterOptions{}, KindFull, want, map[int][]Range{7: {pagesOf(0, pages)}}, func(w *Writer) {
		for page := uint64(0); page < pages; page += 3 {
			changed := bytes.Clone(want[7][page])
			changed[page]++
			want.set(7, page, changed)
			put(t, w, 0, 7, changed, Extent{page * PageSize, 1})
		}
	})
	f := FamiliesOf(c.open(t, 1))
	checkMemory(t, c.open(t, 1), want)
	if f.Blocks() != 2 || len(f.Block(0).Pieces) != 1 || f.Block(0).Pieces[0].Pages != MaxPages {
		t.Errorf("there are %d families, the first is %+v", f.Blocks(), f.Block(0))
	}
}

// TestFamiliesOfEqualPages changes pages that were equal, and so were stored once, each in its own way: all are differences from that
// one, more than a family has room for.
func TestFamiliesOfEqualPages(t *testing.T) {
	const pages = 250
	var c chain
	present, one := map[int][]Range{7: {pagesOf(0, pages)}}, noise(PageSize)
	c.add(t, WriterOptions{}, KindFull, withPages(7, 0, bytes.Repeat(one, pages)), present, func(w *Writer) {
		for page := range uint64(pages) {
			put(t, w, 0, 7, one, Extent{page * PageSize, 1})
		}
	})
	for kept, number := range map[uint64]int{0: 3, pages / 2: 1} { // the page itself is still wanted, or not
		want := c[0].memory.clone()
		c := c[:1:1]
		c.add(t, WriterOptions{}, KindFull, want, present, func(w *Writer) {
			for page := kept; page < pages; page++ {
				changed := bytes.Clone(one)
				binary.LittleEndian.PutUint64(changed[page*8:], page)
				want.set(7, page, changed)
				put(t, w, 0, 7, changed, Extent{page * PageSize, 1})
			}
		})
		p := c.open(t, 1)
		if got := p.Manifest().Figures.BytesDelta; got != int64(pages-kept)*PageSize {
			t.Fatalf("%d bytes are differences", got)
		}
		checkMemory(t, p, want)
		f := FamiliesOf(p)
		for i := range f.Blocks() {
			if n := f.Block(i).Raw; n > 2*MaxBlock {
				t.Errorf("family %d has %d bytes", i, n)
			}
		}
		if f.Blocks() != number {
			t.Errorf("there are %d families instead of %d", f.Blocks(), number)
		}
	}
}

// TestDeltaCacheIsBounded takes and adds more than there is room for, in any order.
