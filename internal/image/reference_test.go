package image

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// blocksSize is the size of all blocks in a checkpoint's own shards.
func blocksSize(tb testing.TB, c *Checkpoint) int64 {
	tb.Helper()
	total := int64(0)
	for i, s := range c.Manifest().Shards {
		total += s.Size - ShardHeader - c.tail(i)
	}
	return total
}

// TestEqualToParentIsReferredTo puts all pages again, of which one differs.
func TestEqualToParentIsReferredTo(t *testing.T) {
	for _, noCompare := range []bool{false, true} {
		t.Run(fmt.Sprint(noCompare), func(t *testing.T) {
			var c chain
			first := noise(MaxBlock)
			file := bytes.Repeat([]byte("some of CRIU's "), 30_000) // two pieces
			c.add(t, WriterOptions{}, KindFull, withPages(7, 64, first), map[int][]Range{7: {pagesOf(64*PageSize, 64)}}, func(w *Writer) {
				put(t, w, 0, 7, first, Extent{64 * PageSize, 64})
				putFile(t, w, "core-7.img", file)
				putFile(t, w, "old.img", file[:10])
			})
			second := bytes.Clone(first)
			second[20*PageSize+5]++
			changed := append([]byte("S"), file[1:]...) // in its first piece
			o := WriterOptions{NoCompare: noCompare, NoDelta: true}
			c.add(t, o, KindFull, withPages(7, 64, second), map[int][]Range{7: {pagesOf(64*PageSize, 64)}}, func(w *Writer) {
				put(t, w, 0, 7, second, Extent{64 * PageSize, 64})
				putFile(t, w, "core-7.img", changed)
				putFile(t, w, "new.img", file[:10])
			})
			p := c.open(t, 1)
			checkMemory(t, p, c[1].memory)
			if !bytes.Equal(fileOf(t, p, "core-7.img"), changed) || !bytes.Equal(fileOf(t, p, "new.img"), file[:10]) {
				t.Error("a file differs")
			}
			f, size := p.Manifest().Figures, blocksSize(t, p)
			wantReferenced, wantSize := int64(63*PageSize), blockLen(1, PageSize)+blockLen(0, MaxBlock)+blockLen(0, 10)
			if noCompare {
				wantReferenced, wantSize = 0, blockLen(1, MaxBlock)+blockLen(0, MaxBlock)+blockLen(0, uint32(len(file)-MaxBlock))+blockLen(0, 10)
			}
			if f.BytesReferenced != wantReferenced || size != wantSize || f.BytesMemory != MaxBlock {
				t.Errorf("the blocks have %d bytes instead of %d; figures are %+v", size, wantSize, f)
			}
		})
	}
}

// TestLaterPutsWin puts a page as the parent has it after and before another content of it.
func TestLaterPutsWin(t *testing.T) {
	var c chain
	a, b := noise(2 * PageSize)[:PageSize], noise(2 * PageSize)[PageSize:]
	present := map[int][]Range{7: {pagesOf(0x10000, 3)}}
	c.add(t, WriterOptions{}, KindFull, nil, present, func(w *Writer) {
		put(t, w, 0, 7, slices3(a, a, a), Extent{0x10000, 3})
	})
	want := withPages(7, 16, slices3(a, b, a))
	want.set(7, 17, b)
	want.set(7, 18, nil)
	c.add(t, WriterOptions{}, KindFull, want, present, func(w *Writer) {
		put(t, w, 0, 7, slices3(b, a, b), Extent{0x10000, 3})
		put(t, w, 1, 7, slices3(a, b, make([]byte, PageSize)), Extent{0x10000, 3})
	})
	p := c.open(t, 1)
	checkMemory(t, p, want)
	// b's block was put for page 16, which is the parent's again, and is alive for page 17.
	if f := p.Manifest().Figures; f.BytesReferenced != PageSize || blocksSize(t, p) != blockLen(2, PageSize) && blocksSize(t, p) != blockLen(1, PageSize) {
		t.Errorf("the blocks have %d bytes; figures are %+v", blocksSize(t, p), f)
	}
}

func slices3(a, b, c []byte) []byte { return append(append(bytes.Clone(a), b...), c...) }

// TestEqualPagesAreStoredOnce has equal pages in one call, in several, and in two processes.
func TestEqualPagesAreStoredOnce(t *testing.T) {
	for _, noShare := range []bool{false, true} {
		t.Run(fmt.Sprint(noShare), func(t *testing.T) {
			var c chain
			one, two := bytes.Repeat([]byte{0xff}, PageSize), noise(PageSize)
			want := memory{7: {}, 8: {}}
			for i := range uint64(64) {
				want.set(7, 64+i, one)
				want.set(7, 256+i, one)
				want.set(8, 64+i, one)
			}
			want.set(7, 100, two)
			want.set(8, 127, two)
			c.add(t, WriterOptions{NoShare: noShare}, KindFull, want, want.present(), func(w *Writer) {
				for _, at := range []struct {
					pid  int
					page uint64
				}{{7, 64}, {8, 64}, {7, 256}} {
					var data []byte
					for i := range uint64(64) {
						data = append(data, want[at.pid][at.page+i]...)
					}
					put(t, w, 0, at.pid, data, Extent{at.page * PageSize, 64})
				}
			})
			p := c.open(t, 0)
			checkMemory(t, p, want)
			f, size := p.Manifest().Figures, blocksSize(t, p)
			wantShared, wantSize := int64(190*PageSize), blockLen(2, 2*PageSize)
			if noShare {
				wantShared, wantSize = 0, 3*blockLen(1, MaxBlock)
			}
			if f.BytesShared != wantShared || size != wantSize {
				t.Errorf("the blocks have %d bytes instead of %d; figures are %+v", size, wantSize, f)
			}
		})
	}
}

// TestSharedFromManyGoroutines puts few contents in many pages from several goroutines at once.
func TestSharedFromManyGoroutines(t *testing.T) {
	var c chain
	contents := noise(40 * PageSize)
	want := memory{7: {}}
	const workers, calls = 6, 20
	c.add(t, WriterOptions{Shards: 3}, KindFull, want, map[int][]Range{7: {pagesOf(0, workers*calls*MaxPages)}}, func(w *Writer) {
		var crew sync.WaitGroup
		errs := make([]error, workers)
		for k := range workers {
			for page := k * calls * MaxPages; page < (k+1)*calls*MaxPages; page++ {
				n := (page * 7 / 3) % 40
				want.set(7, uint64(page), contents[n*PageSize:(n+1)*PageSize])
			}
		}
		for k := range workers {
			crew.Go(func() {
				for i := range calls {
					first := uint64(k*calls+i) * MaxPages
					var data []byte
					for n := range uint64(MaxPages) {
						data = append(data, want[7][first+n]...)
					}
					if err := w.PutPages(0, PageBlock{7, []Extent{{first * PageSize, MaxPages}}, data}); err != nil {
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
	p := c.open(t, 0)
	checkMemory(t, p, want)
	if size := blocksSize(t, p); size > workers*blockLen(40, 40*PageSize) {
		t.Errorf("the blocks have %d bytes", size)
	}
}

// TestDamagedParentIsFound puts a page, or a file, over a block of the parent that is damaged. There is no checkpoint that would need
// that block.
func TestDamagedParentIsFound(t *testing.T) {
	for _, what := range []string{"page", "file"} {
		var c chain
		data := noise(64 * PageSize)
		present := map[int][]Range{7: {pagesOf(64*PageSize, 64)}}
		c.add(t, WriterOptions{}, KindFull, nil, present, func(w *Writer) {
			put(t, w, 0, 7, data, Extent{64 * PageSize, 64})
			putFile(t, w, "core-7.img", data)
		})
		parent := c.open(t, 0)
		at := parent.blocks[0].off
		if what == "file" {
			at = parent.filePieces[0][0].off
		}
		c[0].Files["img-0"][at+2000]++
		w, err := NewWriter(discard{}, WriterOptions{Shards: 1, ID: [16]byte{7}, Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		if what == "file" {
			err = w.PutFile("core-7.img", bytes.NewReader(data))
		} else {
			err = w.PutPages(0, PageBlock{7, []Extent{{70 * PageSize, 1}}, noise(PageSize)})
		}
		if err != nil {
			t.Fatal(err)
		}
		_, why := w.Unread()
		damageIn(t, why, "img-0", int(at), "a damaged parent")
		if err := w.Finish(present, testManifest()); (err == nil) != (what == "file") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestParentsThatCannotBe(t *testing.T) {
	var c chain
	c.add(t, WriterOptions{}, KindFull, nil, map[int][]Range{7: {pagesOf(0, 1)}}, func(w *Writer) { put(t, w, 0, 7, tagged(1, 1), Extent{0, 1}) })
	parent := c.open(t, 0)
	if _, err := NewWriter(discard{}, WriterOptions{Shards: 1, ID: c[0].id, Parent: parent}); err == nil || !strings.Contains(err.Error(), "own id") {
		t.Errorf("a checkpoint that is its own parent: %v", err)
	}
	for _, kind := range []string{KindFull, KindPreDump} {
		w, err := NewWriter(discard{}, WriterOptions{Shards: 1, ID: [16]byte{7}, Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		m := testManifest()
		m.Kind = kind
		err = w.Finish(map[int][]Range{7: {pagesOf(0, 2)}, 8: {pagesOf(0, 1)}}, m)
		if (err == nil) != (kind == KindPreDump) || err == nil && m.Figures.BytesMemory != PageSize {
			t.Errorf("a %s with pages that nobody has: %v, %+v", kind, err, m.Figures)
		}
	}
}
