package image

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"stasis/internal/store"
)

// BenchmarkPutPages is the rate at which one goroutine takes blocks, without anything that the target does: looking for zero
// pages, hashing, bookkeeping.
func BenchmarkPutPages(b *testing.B) {
	data := noise(64 * MaxBlock) // more than fits the caches of a core
	b.SetBytes(MaxBlock)
	w, err := NewWriter(discard{}, WriterOptions{Shards: 4, ID: testID})
	if err != nil {
		b.Fatal(err)
	}
	var unique stamps
	for i := 0; b.Loop(); i++ {
		at := i % 64 * MaxBlock
		block := PageBlock{7, []Extent{{uint64(i) * MaxBlock, MaxPages}}, unique.on(data[at : at+MaxBlock])}
		if err := w.PutPages(0, block); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPutPagesToDisk is the rate of two goroutines and four shards, uncompressed, durable, to the disk that $TMPDIR is on.
// Each operation is 1 GiB.
func BenchmarkPutPagesToDisk(b *testing.B) {
	dir, data := filepath.Join(b.TempDir(), "checkpoint"), [2][]byte{noise(8 * MaxBlock), noise(8 * MaxBlock)}
	const blocks = 1 << 30 / MaxBlock
	b.SetBytes(blocks * MaxBlock)
	for b.Loop() {
		target, err := store.CreateFolder(dir)
		if err != nil {
			b.Fatal(err)
		}
		w, err := NewWriter(target, WriterOptions{Shards: 4, ID: testID})
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan error)
		for k := range 2 {
			go func() {
				var err error
				unique := stamps(k << 32)
				for i := k; i < blocks && err == nil; i += 2 {
					at := i / 2 % 8 * MaxBlock
					err = w.PutPages(0, PageBlock{7, []Extent{{uint64(i) * MaxBlock, MaxPages}}, unique.on(data[k][at : at+MaxBlock])})
				}
				done <- err
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
		finish(b, w, map[int][]Range{7: {{0, 1 << 30}}})
		b.StopTimer()
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// dirty writes a process of that size, then isolated pages of it again, 64 to a block.
func dirty(b *testing.B, w *Writer, size uint64, isolated int) []Range {
	b.Helper()
	block, unique := noise(MaxBlock), stamps(0)
	for addr := uint64(0); addr < size; addr += MaxBlock {
		put(b, w, 0, 7, unique.on(block), Extent{addr, MaxPages})
	}
	r := rand.New(rand.NewPCG(1, 1))
	pages := map[uint64]bool{}
	for len(pages) < isolated {
		pages[r.Uint64N(size/PageSize)*PageSize] = true
	}
	sorted := make([]uint64, 0, isolated)
	for p := range pages {
		sorted = append(sorted, p)
	}
	slices.Sort(sorted)
	for chunk := range slices.Chunk(sorted, MaxPages) {
		var extents []Extent
		for _, p := range chunk {
			extents = append(extents, Extent{p, 1})
		}
		put(b, w, 1, 7, unique.on(block[:len(chunk)*PageSize]), extents...)
	}
	return []Range{{0, size}}
}

// BenchmarkFinish resolves and publishes a process of 4 GiB of which 25 000 isolated pages were written while it was copied.
func BenchmarkFinish(b *testing.B) {
	var stored int64
	for b.Loop() {
		b.StopTimer()
		w, err := NewWriter(discard{}, WriterOptions{Shards: 4, ID: testID})
		if err != nil {
			b.Fatal(err)
		}
		present := map[int][]Range{7: dirty(b, w, 4<<30, 25_000)}
		_, before := w.Written()
		b.StartTimer()
		finish(b, w, present)
		_, stored = w.Written()
		stored -= before
	}
	b.ReportMetric(float64(stored), "index-bytes")
}

// onDisk writes a checkpoint of that size to the disk that $TMPDIR is on.
func onDisk(b *testing.B, size uint64, isolated int, codecName string) *store.Folder {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "checkpoint")
	target, err := store.CreateFolder(dir)
	if err != nil {
		b.Fatal(err)
	}
	w, err := NewWriter(target, WriterOptions{Shards: 4, Codec: newCodec(b, codecName), ID: testID})
	if err != nil {
		b.Fatal(err)
	}
	finish(b, w, map[int][]Range{7: dirty(b, w, size, isolated)})
	src, err := store.OpenFolder(dir)
	if err != nil {
		b.Fatal(err)
	}
	return src
}

// BenchmarkOpen opens a checkpoint of 1 GiB with 25 000 isolated pages.
func BenchmarkOpen(b *testing.B) {
	src := onDisk(b, 1<<30, 25_000, "none")
	for b.Loop() {
		c, err := Open(src)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadBlock reads and checks blocks that are in the page cache.
func BenchmarkReadBlock(b *testing.B) {
	c := open(b, onDisk(b, 256<<20, 0, "none"))
	if err := c.Verify(context.Background(), 2, nil); err != nil {
		b.Fatal(err)
	}
	var buffer Buffer
	b.SetBytes(MaxBlock)
	for i := 0; b.Loop(); i++ {
		if _, err := c.ReadBlock(i%c.Blocks(), &buffer); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify is the rate with several workers, of what is in the page cache.
func BenchmarkVerify(b *testing.B) {
	c := open(b, onDisk(b, 512<<20, 0, "none"))
	for _, workers := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			b.SetBytes(512 << 20)
			for b.Loop() {
				if err := c.Verify(context.Background(), workers, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFind looks up pages of a process of 1 GiB with 25 000 isolated pages, as faults do.
func BenchmarkFind(b *testing.B) {
	c := open(b, onDisk(b, 1<<30, 25_000, "none"))
	r := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		if _, _, kind := c.Find(7, r.Uint64N(1<<30)); kind != Data {
			b.Fatal("a page is missing")
		}
	}
}
