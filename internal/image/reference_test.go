package image_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
)

// blocksSize is the size of all blocks in a checkpoint's own shards.
func blocksSize(tb testing.TB, c *reader.Checkpoint) int64 {
	tb.Helper()
	total := int64(0)
	for i, s := range c.Manifest().Shards {
		total += s.Size - image.ShardHeader - c.TailSize(i)
	}
	return total
}

// TestEqualToParentIsReferredTo puts all pages again, of which one differs.
func TestEqualToParentIsReferredTo(t *testing.T) {
	for _, noCompare := range []bool{false, true} {
		t.Run(fmt.Sprint(noCompare), func(t *testing.T) {
			var c imagetest.Chain
			first := imagetest.Noise(image.MaxBlock)
			file := bytes.Repeat([]byte("some of CRIU's "), 30_000) // two pieces
			c.Add(t, writer.Options{}, image.KindFull, imagetest.WithPages(7, 64, first), map[int][]image.Range{7: {imagetest.PagesOf(64*image.PageSize, 64)}}, func(w *writer.Writer) {
				imagetest.Put(t, w, 0, 7, first, image.Extent{Addr: 64 * image.PageSize, Pages: 64})
				imagetest.PutFile(t, w, "core-7.img", file)
				imagetest.PutFile(t, w, "old.img", file[:10])
			})
			second := bytes.Clone(first)
			second[20*image.PageSize+5]++
			changed := append([]byte("S"), file[1:]...) // in its first piece
			o := writer.Options{NoCompare: noCompare, NoDelta: true}
			c.Add(t, o, image.KindFull, imagetest.WithPages(7, 64, second), map[int][]image.Range{7: {imagetest.PagesOf(64*image.PageSize, 64)}}, func(w *writer.Writer) {
				imagetest.Put(t, w, 0, 7, second, image.Extent{Addr: 64 * image.PageSize, Pages: 64})
				imagetest.PutFile(t, w, "core-7.img", changed)
				imagetest.PutFile(t, w, "new.img", file[:10])
			})
			p := c.Open(t, 1)
			imagetest.CheckMemory(t, p, c[1].Content)
			if !bytes.Equal(imagetest.FileOf(t, p, "core-7.img"), changed) || !bytes.Equal(imagetest.FileOf(t, p, "new.img"), file[:10]) {
				t.Error("a file differs")
			}
			f, size := p.Manifest().Figures, blocksSize(t, p)
			wantReferenced, wantSize := int64(63*image.PageSize), ondisk.BlockLen(1, image.PageSize)+ondisk.BlockLen(0, image.MaxBlock)+ondisk.BlockLen(0, 10)
			if noCompare {
				wantReferenced, wantSize = 0, ondisk.BlockLen(1, image.MaxBlock)+ondisk.BlockLen(0, image.MaxBlock)+ondisk.BlockLen(0, uint32(len(file)-image.MaxBlock))+ondisk.BlockLen(0, 10)
			}
			if f.BytesReferenced != wantReferenced || size != wantSize || f.BytesMemory != image.MaxBlock {
				t.Errorf("the blocks have %d bytes instead of %d; figures are %+v", size, wantSize, f)
			}
		})
	}
}

// TestLaterPutsWin puts a page as the parent has it after and before another content of it.
func TestLaterPutsWin(t *testing.T) {
	var c imagetest.Chain
	a, b := imagetest.Noise(2 * image.PageSize)[:image.PageSize], imagetest.Noise(2 * image.PageSize)[image.PageSize:]
	present := map[int][]image.Range{7: {imagetest.PagesOf(0x10000, 3)}}
	c.Add(t, writer.Options{}, image.KindFull, nil, present, func(w *writer.Writer) {
		imagetest.Put(t, w, 0, 7, slices3(a, a, a), image.Extent{Addr: 0x10000, Pages: 3})
	})
	want := imagetest.WithPages(7, 16, slices3(a, b, a))
	want.Set(7, 17, b)
	want.Set(7, 18, nil)
	c.Add(t, writer.Options{}, image.KindFull, want, present, func(w *writer.Writer) {
		imagetest.Put(t, w, 0, 7, slices3(b, a, b), image.Extent{Addr: 0x10000, Pages: 3})
		imagetest.Put(t, w, 1, 7, slices3(a, b, make([]byte, image.PageSize)), image.Extent{Addr: 0x10000, Pages: 3})
	})
	p := c.Open(t, 1)
	imagetest.CheckMemory(t, p, want)
	// b's block was put for page 16, which is the parent's again, and is alive for page 17.
	if f := p.Manifest().Figures; f.BytesReferenced != image.PageSize || blocksSize(t, p) != ondisk.BlockLen(2, image.PageSize) && blocksSize(t, p) != ondisk.BlockLen(1, image.PageSize) {
		t.Errorf("the blocks have %d bytes; figures are %+v", blocksSize(t, p), f)
	}
}

func slices3(a, b, c []byte) []byte { return append(append(bytes.Clone(a), b...), c...) }

// TestEqualPagesAreStoredOnce has equal pages in one call, in several, and in two processes.
func TestEqualPagesAreStoredOnce(t *testing.T) {
	for _, noShare := range []bool{false, true} {
		t.Run(fmt.Sprint(noShare), func(t *testing.T) {
			var c imagetest.Chain
			one, two := bytes.Repeat([]byte{0xff}, image.PageSize), imagetest.Noise(image.PageSize)
			want := imagetest.Memory{7: {}, 8: {}}
			for i := range uint64(64) {
				want.Set(7, 64+i, one)
				want.Set(7, 256+i, one)
				want.Set(8, 64+i, one)
			}
			want.Set(7, 100, two)
			want.Set(8, 127, two)
			c.Add(t, writer.Options{NoShare: noShare}, image.KindFull, want, want.Present(), func(w *writer.Writer) {
				for _, at := range []struct {
					pid  int
					page uint64
				}{{7, 64}, {8, 64}, {7, 256}} {
					var data []byte
					for i := range uint64(64) {
						data = append(data, want[at.pid][at.page+i]...)
					}
					imagetest.Put(t, w, 0, at.pid, data, image.Extent{Addr: at.page * image.PageSize, Pages: 64})
				}
			})
			p := c.Open(t, 0)
			imagetest.CheckMemory(t, p, want)
			f, size := p.Manifest().Figures, blocksSize(t, p)
			wantShared, wantSize := int64(190*image.PageSize), ondisk.BlockLen(2, 2*image.PageSize)
			if noShare {
				wantShared, wantSize = 0, 3*ondisk.BlockLen(1, image.MaxBlock)
			}
			if f.BytesShared != wantShared || size != wantSize {
				t.Errorf("the blocks have %d bytes instead of %d; figures are %+v", size, wantSize, f)
			}
		})
	}
}

// TestSharedFromManyGoroutines puts few contents in many pages from several goroutines at once.
func TestSharedFromManyGoroutines(t *testing.T) {
	var c imagetest.Chain
	contents := imagetest.Noise(40 * image.PageSize)
	want := imagetest.Memory{7: {}}
	const workers, calls = 6, 20
	c.Add(t, writer.Options{Shards: 3}, image.KindFull, want, map[int][]image.Range{7: {imagetest.PagesOf(0, workers*calls*image.MaxPages)}}, func(w *writer.Writer) {
		var crew sync.WaitGroup
		errs := make([]error, workers)
		for k := range workers {
			for page := k * calls * image.MaxPages; page < (k+1)*calls*image.MaxPages; page++ {
				n := (page * 7 / 3) % 40
				want.Set(7, uint64(page), contents[n*image.PageSize:(n+1)*image.PageSize])
			}
		}
		for k := range workers {
			crew.Go(func() {
				for i := range calls {
					first := uint64(k*calls+i) * image.MaxPages
					var data []byte
					for n := range uint64(image.MaxPages) {
						data = append(data, want[7][first+n]...)
					}
					if err := w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: first * image.PageSize, Pages: image.MaxPages}}, Data: data}); err != nil {
						errs[k] = err
					}
				}
			})
		}
		crew.Wait()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	p := c.Open(t, 0)
	imagetest.CheckMemory(t, p, want)
	if size := blocksSize(t, p); size > workers*ondisk.BlockLen(40, 40*image.PageSize) {
		t.Errorf("the blocks have %d bytes", size)
	}
}

// TestDamagedParentIsFound puts a page, or a file, over a block of the parent that is damaged. There is no checkpoint that would need
// that block.
func TestDamagedParentIsFound(t *testing.T) {
	for _, what := range []string{"page", "file"} {
		var c imagetest.Chain
		data := imagetest.Noise(64 * image.PageSize)
		present := map[int][]image.Range{7: {imagetest.PagesOf(64*image.PageSize, 64)}}
		c.Add(t, writer.Options{}, image.KindFull, nil, present, func(w *writer.Writer) {
			imagetest.Put(t, w, 0, 7, data, image.Extent{Addr: 64 * image.PageSize, Pages: 64})
			imagetest.PutFile(t, w, "core-7.img", data)
		})
		parent := c.Open(t, 0)
		at := parent.BlockTable[0].Off
		if what == "file" {
			at = parent.PieceTable[0][0].Off
		}
		c[0].Files["img-0"][at+2000]++
		w, err := writer.New(imagetest.Discard{}, writer.Options{Shards: 1, ID: [16]byte{7}, Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		if what == "file" {
			err = w.PutFile("core-7.img", bytes.NewReader(data))
		} else {
			err = w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 70 * image.PageSize, Pages: 1}}, Data: imagetest.Noise(image.PageSize)})
		}
		if err != nil {
			t.Fatal(err)
		}
		_, why := w.Unread()
		imagetest.DamageIn(t, why, "img-0", int(at), "a damaged parent")
		if err := w.Finish(present, imagetest.Manifest()); (err == nil) != (what == "file") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestParentsThatCannotBe(t *testing.T) {
	var c imagetest.Chain
	c.Add(t, writer.Options{}, image.KindFull, nil, map[int][]image.Range{7: {imagetest.PagesOf(0, 1)}}, func(w *writer.Writer) {
		imagetest.Put(t, w, 0, 7, imagetest.Tagged(1, 1), image.Extent{Addr: 0, Pages: 1})
	})
	parent := c.Open(t, 0)
	if _, err := writer.New(imagetest.Discard{}, writer.Options{Shards: 1, ID: c[0].ID, Parent: parent}); err == nil || !strings.Contains(err.Error(), "own id") {
		t.Errorf("a checkpoint that is its own parent: %v", err)
	}
	for _, kind := range []string{image.KindFull, image.KindPreDump} {
		w, err := writer.New(imagetest.Discard{}, writer.Options{Shards: 1, ID: [16]byte{7}, Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		m := imagetest.Manifest()
		m.Kind = kind
		err = w.Finish(map[int][]image.Range{7: {imagetest.PagesOf(0, 2)}, 8: {imagetest.PagesOf(0, 1)}}, m)
		if (err == nil) != (kind == image.KindPreDump) || err == nil && m.Figures.BytesMemory != image.PageSize {
			t.Errorf("a %s with pages that nobody has: %v, %+v", kind, err, m.Figures)
		}
	}
}
