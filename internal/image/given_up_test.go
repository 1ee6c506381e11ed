package image

import (
	"bytes"
	"testing"
)

// TestNothingComparedIsRight writes a checkpoint with a Writer that has given up comparing, but for some blocks.
func TestNothingComparedIsRight(t *testing.T) {
	const pages = 4 * MaxPages
	c := counters(t, pages, 2, WriterOptions{})
	want := c[1].memory.clone()
	c.add(t, WriterOptions{}, KindFull, want, want.present(), func(w *Writer) {
		giveUpComparing(w)
		for page := uint64(64); page < 64+pages; page++ {
			changed := bytes.Clone(want[7][page])
			changed[100]++
			want.set(7, page, changed)
			put(t, w, 0, 7, changed, Extent{page * PageSize, 1})
		}
	})
	checkMemory(t, c.open(t, 2), want)
}
