package image_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// tables writes a checkpoint to nowhere and returns what a reader knows of it from its indexes.
func tables(b *testing.B, o writer.Options, fill func(w *writer.Writer) map[int][]image.Range) (*reader.Checkpoint, *ends) {
	b.Helper()
	to := new(ends)
	w, err := writer.New(to, o)
	if err != nil {
		b.Fatal(err)
	}
	imagetest.Finish(b, w, fill(w))
	c, err := reader.Open(to)
	if err != nil {
		b.Fatal(err)
	}
	return c, to
}

// BenchmarkFinishOnParent resolves and publishes a checkpoint that has nothing but its parent's 4 GiB, in blocks of runs, in
// blocks of pages from anywhere, and in blocks of one page.
func BenchmarkFinishOnParent(b *testing.B) {
	const size, pages = 4 << 30, 4 << 30 / image.PageSize
	whole, page, unique := imagetest.Noise(image.MaxBlock), imagetest.Noise(image.PageSize), imagetest.Stamps(0)
	for name, fill := range map[string]func(w *writer.Writer) map[int][]image.Range{
		"runs": func(w *writer.Writer) map[int][]image.Range {
			return map[int][]image.Range{7: dirty(b, w, size, 25_000)}
		},
		"isolated": func(w *writer.Writer) map[int][]image.Range {
			order := rand.New(rand.NewPCG(1, 1)).Perm(pages)
			for i := 0; i < pages; i += image.MaxPages {
				var extents []image.Extent
				for _, p := range order[i : i+image.MaxPages] {
					extents = append(extents, image.Extent{Addr: uint64(p) * image.PageSize, Pages: 1})
				}
				imagetest.Put(b, w, 0, 7, unique.On(whole), extents...)
			}
			return map[int][]image.Range{7: {{Start: 0, End: size}}}
		},
		"single": func(w *writer.Writer) map[int][]image.Range {
			for i := range pages {
				imagetest.Put(b, w, 0, 7, unique.On(page), image.Extent{Addr: uint64(i) * image.PageSize, Pages: 1})
			}
			return map[int][]image.Range{7: {{Start: 0, End: size}}}
		},
	} {
		parent, _ := tables(b, writer.Options{Shards: 4, ID: imagetest.ID}, fill)
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				w, err := writer.New(imagetest.Discard{}, writer.Options{Shards: 4, ID: [16]byte{1, byte(i)}, Parent: parent, ParentPath: "../parent"})
				if err != nil {
					b.Fatal(err)
				}
				imagetest.Finish(b, w, map[int][]image.Range{7: {{Start: 0, End: size}}})
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
	whole, unique := imagetest.Noise(image.MaxBlock), imagetest.Stamps(1<<40)
	for _, length := range []int{2, 500} {
		r := rand.New(rand.NewPCG(1, 1))
		var top *reader.Checkpoint
		var at *ends
		for depth := range length {
			o := writer.Options{Shards: 4, ID: [16]byte{1, byte(depth), byte(depth >> 8)}, Parent: top, ParentPath: fmt.Sprintf("../c%d", depth)}
			o.NoCompare = true // tables can't read blocks
			top, at = tables(b, o, func(w *writer.Writer) map[int][]image.Range {
				if depth == 0 {
					return map[int][]image.Range{7: dirty(b, w, pages*image.PageSize, 0)[:1]}
				}
				for left := 25_000 / (length - 1); left > 0; left -= image.MaxPages {
					var extents []image.Extent
					for range min(left, image.MaxPages) {
						extents = append(extents, image.Extent{Addr: r.Uint64N(pages) * image.PageSize, Pages: 1})
					}
					imagetest.Put(b, w, 0, 7, unique.On(whole[:len(extents)*image.PageSize]), extents...)
				}
				return map[int][]image.Range{7: {{Start: 0, End: pages * image.PageSize}}}
			})
		}
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			for b.Loop() {
				c, err := reader.Open(at)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(top.Manifest().Origins)), "origins")
			b.ReportMetric(float64(len(top.Extents)), "extents")
		})
	}
}

// BenchmarkPutChanged puts single pages from anywhere of a process of 1 GiB, one in four and one in 64, sorted as a tracker
// gives them, of each of which eight bytes changed.
func BenchmarkPutChanged(b *testing.B) {
	const size = 1 << 30
	for _, codecName := range []string{"none", "lz4", "zstd"} {
		_, parent, page := imagetest.HeapParent(b, size, codecName)
		for _, every := range []int{4, 64} {
			for name, o := range map[string]writer.Options{
				"plain": {NoCompare: true, NoShare: true, NoDelta: true}, "share": {NoCompare: true, NoDelta: true}, "compare": {NoDelta: true}, "delta": {},
			} {
				b.Run(fmt.Sprintf("%s/1in%d/%s", codecName, every, name), func(b *testing.B) {
					o.Shards, o.Codec, o.ID, o.Parent = 4, imagetest.NewCodec(b, codecName), [16]byte{1}, parent
					r := rand.New(rand.NewPCG(1, 1))
					var pages []int
					for i := range size / image.PageSize {
						if r.IntN(every) == 0 {
							pages = append(pages, i)
						}
					}
					b.SetBytes(int64(len(pages)) * image.PageSize)
					stored := int64(0)
					for b.Loop() {
						w, err := writer.New(imagetest.Discard{}, o)
						if err != nil {
							b.Fatal(err)
						}
						data := make([]byte, image.MaxBlock)
						for chunk := range slices.Chunk(pages, image.MaxPages) {
							extents := make([]image.Extent, len(chunk))
							for n, p := range chunk {
								page(p, data[n*image.PageSize:])
								binary.LittleEndian.PutUint64(data[n*image.PageSize+p*64%image.PageSize:], uint64(p)<<20|1)
								extents[n] = image.Extent{Addr: uint64(p) * image.PageSize, Pages: 1}
							}
							imagetest.Put(b, w, 0, 7, data[:len(chunk)*image.PageSize], extents...)
						}
						_, stored = w.Written()
					}
					b.ReportMetric(float64(stored)/float64(len(pages)), "bytes/page")
				})
			}
		}
	}
}

// BenchmarkReadDeltas reads all blocks of a checkpoint that is on disk and in the page cache: one of pages, one on it whose pages
// all are differences, and one of which one in 32 is.
func BenchmarkReadDeltas(b *testing.B) {
	const size = 256 << 20
	for _, codecName := range []string{"none", "lz4", "zstd"} {
		parentSrc, parent, page := imagetest.HeapParent(b, size, codecName)
		read := func(name string, c *reader.Checkpoint) {
			b.Run(codecName+"/"+name, func(b *testing.B) {
				b.SetBytes(size)
				var buffer reader.Buffer
				for b.Loop() {
					for i := range c.Blocks() {
						if _, err := c.ReadBlock(i, &buffer); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(float64(c.Manifest().Figures.BytesDelta)/size, "delta")
			})
		}
		read("pages", parent)
		for _, every := range []int{1, 32} {
			dir := filepath.Join(b.TempDir(), "child")
			target, err := store.CreateFolder(dir)
			if err != nil {
				b.Fatal(err)
			}
			w, err := writer.New(target, writer.Options{Shards: 4, Codec: imagetest.NewCodec(b, codecName), ID: [16]byte{1}, Parent: parent})
			if err != nil {
				b.Fatal(err)
			}
			var pages []int
			for p := 0; p < size/image.PageSize; p += every {
				pages = append(pages, p)
			}
			data := make([]byte, image.MaxBlock)
			for chunk := range slices.Chunk(pages, image.MaxPages) {
				var extents []image.Extent
				for n, p := range chunk {
					page(p, data[n*image.PageSize:])
					binary.LittleEndian.PutUint64(data[n*image.PageSize+p*64%image.PageSize:], uint64(p)<<20|1)
					extents = append(extents, image.Extent{Addr: uint64(p) * image.PageSize, Pages: 1})
				}
				imagetest.Put(b, w, 0, 7, data[:len(chunk)*image.PageSize], extents...)
			}
			imagetest.Finish(b, w, map[int][]image.Range{7: {{Start: 0, End: size}}})
			src, err := store.OpenFolder(dir)
			if err != nil {
				b.Fatal(err)
			}
			c, err := reader.OpenChain(src, func([16]byte) (store.Source, error) { return parentSrc, nil })
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = c.Close() })
			read(fmt.Sprintf("1in%d", every), c)
		}
	}
}

// BenchmarkReadChain opens the last of chains of two lengths of the same content, 64 MiB of which a half was written again, and
// reads all of it, as a restore does.
func BenchmarkReadChain(b *testing.B) {
	const size, again = 64 << 20, 8000
	whole := imagetest.HeapPages(image.MaxPages, 1)
	for _, length := range []int{2, 500} {
		dir := b.TempDir()
		path := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
		resolve := func(id [16]byte) (store.Source, error) {
			return store.OpenFolder(path(int(binary.LittleEndian.Uint32(id[:]))))
		}
		top := func(i int) *reader.Checkpoint {
			src, err := store.OpenFolder(path(i))
			if err != nil {
				b.Fatal(err)
			}
			c, err := reader.OpenChain(src, resolve)
			if err != nil {
				b.Fatal(err)
			}
			return c
		}
		r, unique, parent := rand.New(rand.NewPCG(1, 1)), imagetest.Stamps(0), (*reader.Checkpoint)(nil)
		for depth := range length {
			target, err := store.CreateFolder(path(depth))
			if err != nil {
				b.Fatal(err)
			}
			o := writer.Options{Shards: 2, Codec: imagetest.NewCodec(b, "lz4"), Parent: parent, NoCompare: true}
			binary.LittleEndian.PutUint32(o.ID[:], uint32(depth))
			w, err := writer.New(target, o)
			if err != nil {
				b.Fatal(err)
			}
			for at := uint64(0); depth == 0 && at < size; at += image.MaxBlock {
				imagetest.Put(b, w, 0, 7, unique.On(whole), image.Extent{Addr: at, Pages: image.MaxPages})
			}
			for left := again / (length - 1); depth > 0 && left > 0; left -= image.MaxPages {
				var extents []image.Extent
				for range min(left, image.MaxPages) {
					extents = append(extents, image.Extent{Addr: r.Uint64N(size/image.PageSize) * image.PageSize, Pages: 1})
				}
				imagetest.Put(b, w, 0, 7, unique.On(whole[:len(extents)*image.PageSize]), extents...)
			}
			imagetest.Finish(b, w, map[int][]image.Range{7: {{Start: 0, End: size}}})
			if parent != nil {
				_ = parent.Close()
			}
			parent = top(depth)
		}
		_ = parent.Close()
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				c := top(length - 1)
				var buffer reader.Buffer
				for i := range c.Blocks() {
					if _, err := c.ReadBlock(i, &buffer); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(c.Manifest().Origins)), "origins")
				b.ReportMetric(float64(c.Blocks()), "blocks")
				_ = c.Close()
			}
		})
	}
}
