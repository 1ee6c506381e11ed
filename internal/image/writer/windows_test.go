package writer_test

import (
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/plan"
	"stasis/internal/image/writer"
)

// TestWindows resolves processes in many windows, on a parent in as many: with runs, zeros and equal pages that go over their ends.
func TestWindows(t *testing.T) {
	const edge = plan.BucketPages
	var c imagetest.Chain
	small := func(w *writer.Writer) { writer.SetWindowRuns(w, 3) }
	first := imagetest.Memory{}
	set := func(m imagetest.Memory, pid, page int, content []byte) { m.Set(pid, uint64(page), content) }
	content := imagetest.Noise(40 * image.PageSize)
	page := func(i int) []byte { return content[i*image.PageSize : (i+1)*image.PageSize] }
	for i := range 20 {
		set(first, 7, edge-10+i, page(i))
		set(first, 7, 5*edge-3+i, page(i+20))
		set(first, 9, 3*edge-7+i, page(i))
	}
	for i := range 30 {
		set(first, 7, 2*edge-15+i, nil)
	}
	c.Add(t, writer.Options{Shards: 3}, image.KindFull, first, first.Present(), func(w *writer.Writer) {
		small(w)
		if err := w.PutZero(0, 7, []image.Range{{Start: image.PageSize, End: 6 * edge * image.PageSize}}); err != nil {
			t.Fatal(err)
		}
		imagetest.Put(t, w, 1, 7, content[:20*image.PageSize], image.Extent{Addr: (edge - 10) * image.PageSize, Pages: 20})
		imagetest.Put(t, w, 1, 9, content[:20*image.PageSize], image.Extent{Addr: (3*edge - 7) * image.PageSize, Pages: 20})
		imagetest.Put(t, w, 1, 7, content[:20*image.PageSize], image.Extent{Addr: (5*edge - 3) * image.PageSize, Pages: 20})
		imagetest.Put(t, w, 2, 7, content[20*image.PageSize:], image.Extent{Addr: (5*edge - 3) * image.PageSize, Pages: 20})
	})
	second := first.Clone()
	set(second, 7, edge, page(39))
	set(second, 7, 5*edge+1, nil)
	c.Add(t, writer.Options{Shards: 2}, image.KindFull, second, second.Present(), func(w *writer.Writer) {
		small(w)
		imagetest.Put(t, w, 0, 7, page(39), image.Extent{Addr: edge * image.PageSize, Pages: 1})
		imagetest.Put(t, w, 0, 7, make([]byte, image.PageSize), image.Extent{Addr: (5*edge + 1) * image.PageSize, Pages: 1})
	})
	for i := range c {
		p := c.Open(t, i)
		imagetest.CheckMemory(t, p, c[i].Content)
		imagetest.CheckOrigins(t, c, i, p)
		imagetest.CheckUses(t, p)
	}
}
