package image_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// BenchmarkPutPages is the rate at which one goroutine takes blocks, without anything that the target does: looking for zero
// pages, hashing, bookkeeping.
func BenchmarkPutPages(b *testing.B) {
	data := imagetest.Noise(64 * image.MaxBlock) // more than fits the caches of a core
	b.SetBytes(image.MaxBlock)
	w, err := writer.New(imagetest.Discard{}, writer.Options{Shards: 4, ID: imagetest.ID})
	if err != nil {
		b.Fatal(err)
	}
	var unique imagetest.Stamps
	for i := 0; b.Loop(); i++ {
		at := i % 64 * image.MaxBlock
		block := image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: uint64(i) * image.MaxBlock, Pages: image.MaxPages}}, Data: unique.On(data[at : at+image.MaxBlock])}
		if err := w.PutPages(0, block); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPutPagesToDisk is the rate of two goroutines and four shards, uncompressed, durable, to the disk that $TMPDIR is on.
// Each operation is 1 GiB.
func BenchmarkPutPagesToDisk(b *testing.B) {
	dir, data := filepath.Join(b.TempDir(), "checkpoint"), [2][]byte{imagetest.Noise(8 * image.MaxBlock), imagetest.Noise(8 * image.MaxBlock)}
	const blocks = 1 << 30 / image.MaxBlock
	b.SetBytes(blocks * image.MaxBlock)
	for b.Loop() {
		target, err := store.CreateFolder(dir)
		if err != nil {
			b.Fatal(err)
		}
		w, err := writer.New(target, writer.Options{Shards: 4, ID: imagetest.ID})
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan error)
		for k := range 2 {
			go func() {
				var err error
				unique := imagetest.Stamps(k << 32)
				for i := k; i < blocks && err == nil; i += 2 {
					at := i / 2 % 8 * image.MaxBlock
					err = w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: uint64(i) * image.MaxBlock, Pages: image.MaxPages}}, Data: unique.On(data[k][at : at+image.MaxBlock])})
				}
				done <- err
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
		imagetest.Finish(b, w, map[int][]image.Range{7: {{Start: 0, End: 1 << 30}}})
		b.StopTimer()
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// dirty writes a process of that size, then isolated pages of it again, 64 to a block.
func dirty(b *testing.B, w *writer.Writer, size uint64, isolated int) []image.Range {
	b.Helper()
	block, unique := imagetest.Noise(image.MaxBlock), imagetest.Stamps(0)
	for addr := uint64(0); addr < size; addr += image.MaxBlock {
		imagetest.Put(b, w, 0, 7, unique.On(block), image.Extent{Addr: addr, Pages: image.MaxPages})
	}
	r := rand.New(rand.NewPCG(1, 1))
	pages := map[uint64]bool{}
	for len(pages) < isolated {
		pages[r.Uint64N(size/image.PageSize)*image.PageSize] = true
	}
	sorted := make([]uint64, 0, isolated)
	for p := range pages {
		sorted = append(sorted, p)
	}
	slices.Sort(sorted)
	for chunk := range slices.Chunk(sorted, image.MaxPages) {
		var extents []image.Extent
		for _, p := range chunk {
			extents = append(extents, image.Extent{Addr: p, Pages: 1})
		}
		imagetest.Put(b, w, 1, 7, unique.On(block[:len(chunk)*image.PageSize]), extents...)
	}
	return []image.Range{{Start: 0, End: size}}
}

// BenchmarkFinish resolves and publishes a process of 4 GiB of which 25 000 isolated pages were written while it was copied.
func BenchmarkFinish(b *testing.B) {
	var stored int64
	for b.Loop() {
		b.StopTimer()
		w, err := writer.New(imagetest.Discard{}, writer.Options{Shards: 4, ID: imagetest.ID})
		if err != nil {
			b.Fatal(err)
		}
		present := map[int][]image.Range{7: dirty(b, w, 4<<30, 25_000)}
		_, before := w.Written()
		b.StartTimer()
		imagetest.Finish(b, w, present)
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
	w, err := writer.New(target, writer.Options{Shards: 4, Codec: imagetest.NewCodec(b, codecName), ID: imagetest.ID})
	if err != nil {
		b.Fatal(err)
	}
	imagetest.Finish(b, w, map[int][]image.Range{7: dirty(b, w, size, isolated)})
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
		c, err := reader.Open(src)
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
	c := imagetest.Open(b, onDisk(b, 256<<20, 0, "none"))
	if err := c.Verify(context.Background(), 2, nil); err != nil {
		b.Fatal(err)
	}
	var buffer reader.Buffer
	b.SetBytes(image.MaxBlock)
	for i := 0; b.Loop(); i++ {
		if _, err := c.ReadBlock(i%c.Blocks(), &buffer); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerify is the rate with several workers, of what is in the page cache.
func BenchmarkVerify(b *testing.B) {
	c := imagetest.Open(b, onDisk(b, 512<<20, 0, "none"))
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
	c := imagetest.Open(b, onDisk(b, 1<<30, 25_000, "none"))
	r := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		if _, _, kind := c.Find(7, r.Uint64N(1<<30)); kind != image.Data {
			b.Fatal("a page is missing")
		}
	}
}
