package writer_test

import (
	"bytes"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/writer"
)

// TestNothingComparedIsRight writes a checkpoint with a Writer that has given up comparing, but for some blocks.
func TestNothingComparedIsRight(t *testing.T) {
	const pages = 4 * image.MaxPages
	c := imagetest.Counters(t, pages, 2, writer.Options{})
	want := c[1].Content.Clone()
	c.Add(t, writer.Options{}, image.KindFull, want, want.Present(), func(w *writer.Writer) {
		writer.GiveUpComparing(w)
		for page := uint64(64); page < 64+pages; page++ {
			changed := bytes.Clone(want[7][page])
			changed[100]++
			want.Set(7, page, changed)
			imagetest.Put(t, w, 0, 7, changed, image.Extent{Addr: page * image.PageSize, Pages: 1})
		}
	})
	imagetest.CheckMemory(t, c.Open(t, 2), want)
}
