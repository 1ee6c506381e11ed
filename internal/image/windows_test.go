package image

import (
	"testing"
)

// TestWindows resolves processes in many windows, on a parent in as many: with runs, zeros and equal pages that go over their ends.
func TestWindows(t *testing.T) {
	const edge = bucketPages
	var c chain
	small := func(w *Writer) { setWindowRuns(w, 3) }
	first := memory{}
	set := func(m memory, pid, page int, content []byte) { m.set(pid, uint64(page), content) }
	content := noise(40 * PageSize)
	page := func(i int) []byte { return content[i*PageSize : (i+1)*PageSize] }
	for i := range 20 {
		set(first, 7, edge-10+i, page(i))
		set(first, 7, 5*edge-3+i, page(i+20))
		set(first, 9, 3*edge-7+i, page(i))
	}
	for i := range 30 {
		set(first, 7, 2*edge-15+i, nil)
	}
	c.add(t, WriterOptions{Shards: 3}, KindFull, first, first.present(), func(w *Writer) {
		small(w)
		if err := w.PutZero(0, 7, []Range{{PageSize, 6 * edge * PageSize}}); err != nil {
			t.Fatal(err)
		}
		put(t, w, 1, 7, content[:20*PageSize], Extent{(edge - 10) * PageSize, 20})
		put(t, w, 1, 9, content[:20*PageSize], Extent{(3*edge - 7) * PageSize, 20})
		put(t, w, 1, 7, content[:20*PageSize], Extent{(5*edge - 3) * PageSize, 20})
		put(t, w, 2, 7, content[20*PageSize:], Extent{(5*edge - 3) * PageSize, 20})
	})
	second := first.clone()
	set(second, 7, edge, page(39))
	set(second, 7, 5*edge+1, nil)
	c.add(t, WriterOptions{Shards: 2}, KindFull, second, second.present(), func(w *Writer) {
		small(w)
		put(t, w, 0, 7, page(39), Extent{edge * PageSize, 1})
		put(t, w, 0, 7, make([]byte, PageSize), Extent{(5*edge + 1) * PageSize, 1})
	})
	for i := range c {
		p := c.open(t, i)
		checkMemory(t, p, c[i].memory)
		checkOrigins(t, c, i, p)
		checkUses(t, p)
	}
}
