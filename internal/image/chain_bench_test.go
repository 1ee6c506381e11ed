package image

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// tables writes a checkpoint to nowhere and returns what a reader knows of it from its indexes.
func tables(b *testing.B, o WriterOptions, fill func(w *Writer) map[int][]Range) *Checkpoint {
	b.Helper()
	w, err := NewWriter(discard{}, o)
	if err != nil {
		b.Fatal(err)
	}
	m := testManifest()
	indexes, origins, err := w.indexes(fill(w), false)
	if err != nil {
		b.Fatal(err)
	}
	tails, err := w.writeTails(indexes)
	if err != nil {
		b.Fatal(err)
	}
	w.describe(m, tails, origins)
	text, err := m.encode()
	if err != nil {
		b.Fatal(err)
	}
	c, err := w.readBack(text, tails)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkFinishOnParent resolves and publishes a checkpoint that has nothing but its parent's 4 GiB, in blocks of runs, in
// blocks of pages from anywhere, and in blocks of one page.
func BenchmarkFinishOnParent(b *testing.B) {
	const size, pages = 4 << 30, 4 << 30 / PageSize
	whole, page := noise(MaxBlock), noise(PageSize)
	for name, fill := range map[string]func(w *Writer) map[int][]Range{
		"runs": func(w *Writer) map[int][]Range { return map[int][]Range{7: dirty(b, w, size, 25_000)} },
		"isolated": func(w *Writer) map[int][]Range {
			order := rand.New(rand.NewPCG(1, 1)).Perm(pages)
			for i := 0; i < pages; i += MaxPages {
				var extents []Extent
				for _, p := range order[i : i+MaxPages] {
					extents = append(extents, Extent{uint64(p) * PageSize, 1})
				}
				put(b, w, 0, 7, whole, extents...)
			}
			return map[int][]Range{7: {{0, size}}}
		},
		"single": func(w *Writer) map[int][]Range {
			for i := range pages {
				put(b, w, 0, 7, page, Extent{uint64(i) * PageSize, 1})
			}
			return map[int][]Range{7: {{0, size}}}
		},
	} {
		parent := tables(b, WriterOptions{Shards: 4, ID: testID}, fill)
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				w, err := NewWriter(discard{}, WriterOptions{Shards: 4, ID: [16]byte{1, byte(i)}, Parent: parent, ParentPath: "../parent"})
				if err != nil {
					b.Fatal(err)
				}
				finish(b, w, map[int][]Range{7: {{0, size}}})
				_, stored := w.Written()
				b.ReportMetric(float64(stored), "index-bytes")
			}
			b.ReportMetric(float64(parent.Blocks()), "blocks")
		})
	}
}

// BenchmarkOpenChain opens the last of chains of two lengths of the same content.
func BenchmarkOpenChain(b *testing.B) {
	const pages = 100_000
	whole := noise(MaxBlock)
	for _, length := range []int{2, 500} {
		r, top := rand.New(rand.NewPCG(1, 1)), (*Checkpoint)(nil)
		for depth := range length {
			o := WriterOptions{Shards: 4, ID: [16]byte{1, byte(depth), byte(depth >> 8)}, Parent: top, ParentPath: fmt.Sprintf("../c%d", depth)}
			top = tables(b, o, func(w *Writer) map[int][]Range {
				if depth == 0 {
					return map[int][]Range{7: dirty(b, w, pages*PageSize, 0)[:1]}
				}
				for range 25_000 / MaxPages / (length - 1) {
					var extents []Extent
					for range MaxPages {
						extents = append(extents, Extent{r.Uint64N(pages) * PageSize, 1})
					}
					put(b, w, 0, 7, whole, extents...)
				}
				return map[int][]Range{7: {{0, pages * PageSize}}}
			})
		}
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			for b.Loop() {
				c, err := Open(top.src)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(top.manifest.Origins)), "origins")
			b.ReportMetric(float64(len(top.extents)), "extents")
		})
	}
}
