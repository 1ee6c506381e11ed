package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// model is what a checkpoint must hold: of each page of each process the tag that it was last put with; 0 is a zero page.
type model map[int]map[uint64]uint64

func (m model) put(pid int, page, tag uint64) {
	if m[pid] == nil {
		m[pid] = map[uint64]uint64{}
	}
	m[pid][page] = tag
}

// randomCheckpoint writes one and returns the model of what is present.
func randomCheckpoint(t *testing.T, r *rand.Rand, w *writer.Writer) (model, map[int][]image.Range, map[string][]byte) {
	t.Helper()
	all, tag := model{}, uint64(1)
	rounds := 1 + r.IntN(4)
	for round := range rounds {
		for range r.IntN(8) {
			pid := []int{1, 77, 4_000_000}[r.IntN(3)]
			if r.IntN(5) == 0 {
				x := imagetest.PagesOf(r.Uint64N(300)*image.PageSize, 1+r.IntN(80))
				if err := w.PutZero(round, pid, []image.Range{x}); err != nil {
					t.Fatal(err)
				}
				for p := x.Start; p < x.End; p += image.PageSize {
					all.put(pid, p/image.PageSize, 0)
				}
				continue
			}
			var extents []image.Extent
			var data []byte
			for page := r.Uint64N(200); len(data) < image.MaxBlock && len(extents) < 1+r.IntN(20); {
				n := min(1+r.IntN(8), image.MaxPages-len(data)/image.PageSize)
				extents = append(extents, image.Extent{Addr: page * image.PageSize, Pages: uint32(n)})
				for range n {
					next := imagetest.Tagged(tag, 1)
					if r.IntN(4) == 0 {
						clear(next)
						all.put(pid, page, 0)
					} else {
						all.put(pid, page, tag)
					}
					data = append(data, next...)
					tag++
					page++
				}
				page += r.Uint64N(5)
			}
			imagetest.Put(t, w, round, pid, data, extents...)
			clear(data) // it may be used again
		}
	}
	present := map[int][]image.Range{}
	for pid, pages := range all {
		present[pid] = nil
		for page := range pages {
			if r.IntN(10) == 0 {
				delete(pages, page) // gone by the time of the freeze
			} else {
				present[pid] = append(present[pid], imagetest.PagesOf(page*image.PageSize, 1))
			}
		}
	}
	files := map[string][]byte{}
	for i := range r.IntN(4) {
		name := fmt.Sprintf("core-%d.img", i)
		files[name] = imagetest.Tagged(uint64(i), 200)[:r.IntN(600_000)]
		imagetest.PutFile(t, w, name, files[name])
	}
	return all, present, files
}

// TestCheckpointsAgainstModel writes random checkpoints and reads them by every way that there is.
func TestCheckpointsAgainstModel(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			w, m := imagetest.Begin(t, 1+r.IntN(5), codec.Names()[r.IntN(5)])
			want, present, files := randomCheckpoint(t, r, w)
			imagetest.Finish(t, w, present)
			c := imagetest.Open(t, m)
			if err := c.Verify(context.Background(), 2, nil); err != nil {
				t.Fatal(err)
			}
			checkBlocks(t, c, want)
			checkLookups(t, c, want)
			for name, content := range files {
				if !bytes.Equal(imagetest.FileOf(t, c, name), content) {
					t.Errorf("%s differs", name)
				}
			}
			if len(c.Files()) != len(files) {
				t.Errorf("there are %d files instead of %d", len(c.Files()), len(files))
			}
			checkFigures(t, c, w, want)
		})
	}
}

// checkBlocks reads every block and sees that its pieces and the zero ranges together are the model, each page once.
func checkBlocks(t *testing.T, c *reader.Checkpoint, want model) {
	t.Helper()
	got := model{}
	var buffer reader.Buffer
	lowest := [2]uint64{}
	for i := range c.Blocks() {
		data, err := c.ReadBlock(i, &buffer)
		if err != nil {
			t.Fatal(err)
		}
		info := c.Block(i)
		if len(data) != info.Raw || len(info.Pieces) == 0 {
			t.Fatalf("block %d has %d bytes: %+v", i, len(data), info)
		}
		first := [2]uint64{uint64(info.Pieces[0].PID), info.Pieces[0].Addr}
		if i > 0 && slices.Compare(lowest[:], first[:]) >= 0 {
			t.Fatalf("block %d is not in order", i)
		}
		lowest = first
		for _, p := range info.Pieces {
			for n := range uint64(p.Pages) {
				page := p.Addr/image.PageSize + n
				if _, twice := got[p.PID][page]; twice {
					t.Fatalf("page %d of %d is there twice", page, p.PID)
				}
				at := (uint64(p.First) + n) * image.PageSize
				tag := binary.LittleEndian.Uint64(data[at:])
				if !bytes.Equal(data[at:at+image.PageSize], imagetest.Tagged(tag, 1)) {
					t.Fatalf("page %d of %d has wrong content", page, p.PID)
				}
				got.put(p.PID, page, tag)
			}
		}
	}
	for _, pid := range c.PIDs() {
		for _, z := range c.ZeroRanges(pid) {
			for p := z.Start / image.PageSize; p < z.End/image.PageSize; p++ {
				if _, twice := got[pid][p]; twice {
					t.Fatalf("zero page %d of %d is there twice", p, pid)
				}
				got.put(pid, p, 0)
			}
		}
	}
	for pid, pages := range want {
		if len(pages) == 0 && got[pid] == nil {
			continue
		}
		for page, tag := range pages {
			if g, ok := got[pid][page]; !ok || g != tag {
				t.Fatalf("page %d of %d is %d (%v) instead of %d", page, pid, g, ok, tag)
			}
		}
		if len(got[pid]) != len(pages) {
			t.Fatalf("process %d has %d pages instead of %d", pid, len(got[pid]), len(pages))
		}
	}
	if len(got) > len(want) {
		t.Fatalf("there are processes that were never put: %v", c.PIDs())
	}
}

// checkLookups compares Find and Ranges with the model, page by page.
func checkLookups(t *testing.T, c *reader.Checkpoint, want model) {
	t.Helper()
	for pid, pages := range want {
		covered := map[uint64]bool{}
		last := uint64(0)
		for i, x := range c.Ranges(pid) {
			if x.Start >= x.End || i > 0 && x.Start <= last {
				t.Fatalf("ranges of %d are not sorted and joined: %v", pid, c.Ranges(pid))
			}
			last = x.End
			for p := x.Start; p < x.End; p += image.PageSize {
				covered[p/image.PageSize] = true
			}
		}
		for page := range uint64(500) {
			tag, ok := pages[page]
			block, at, kind := c.Find(pid, page*image.PageSize+page%image.PageSize)
			wantKind := image.Absent
			if ok {
				wantKind = image.Data
				if tag == 0 {
					wantKind = image.Zero
				}
			}
			if kind != wantKind || covered[page] != ok {
				t.Fatalf("page %d of %d is of kind %d instead of %d, in the ranges: %v", page, pid, kind, wantKind, covered[page])
			}
			if kind != image.Data || page%8 != 3 { // reading is slow, and checkBlocks has read all
				continue
			}
			data, err := c.ReadBlock(block, new(reader.Buffer))
			if err != nil || binary.LittleEndian.Uint64(data[at*image.PageSize:]) != tag {
				t.Fatalf("page %d of %d was not found where Find says (%v)", page, pid, err)
			}
		}
	}
	if _, _, kind := c.Find(5, 0); kind != image.Absent || c.Ranges(5) != nil || c.ZeroRanges(5) != nil {
		t.Error("a process that is not there has pages")
	}
}

func checkFigures(t *testing.T, c *reader.Checkpoint, w *writer.Writer, want model) {
	t.Helper()
	f := c.Manifest().Figures
	pages, zero := int64(0), int64(0)
	for _, m := range want {
		pages += int64(len(m))
		for _, tag := range m {
			if tag == 0 {
				zero++
			}
		}
	}
	raw, stored := w.Written()
	if f.BytesMemory != pages*image.PageSize || f.ZeroPages != zero || f.BytesRaw != raw || f.BytesStored != stored {
		t.Errorf("figures are %+v, with %d pages, %d zero, %d bytes put and %d stored", f, pages, zero, raw, stored)
	}
	size := int64(0)
	for _, s := range c.Manifest().Shards {
		size += s.Size
	}
	if size != stored || f.BytesSuperseded < 0 || f.BytesSuperseded > stored {
		t.Errorf("the shards have %d bytes instead of %d; superseded are %d", size, stored, f.BytesSuperseded)
	}
}

// TestManyWriters puts pages and files from many goroutines at once, to disk.
func TestManyWriters(t *testing.T) {
	for _, codecName := range codec.Names() {
		t.Run(codecName, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "checkpoint")
			target, err := store.CreateFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			w, err := writer.New(target, writer.Options{Shards: 3, Codec: imagetest.NewCodec(t, codecName), ID: imagetest.ID})
			if err != nil {
				t.Fatal(err)
			}
			const workers, blocks, pages = 6, 12, 20
			want, present := model{}, map[int][]image.Range{}
			var crew sync.WaitGroup
			errs := make([]error, 2*workers)
			for k := range workers {
				for i := range blocks {
					start := uint64(k*blocks+i) * pages
					present[7] = append(present[7], imagetest.PagesOf(start*image.PageSize, pages))
					for p := range uint64(pages) {
						want.put(7, start+p, start+p+1)
					}
				}
				crew.Go(func() {
					for i := range blocks {
						start := uint64(k*blocks+i) * pages
						b := image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: start * image.PageSize, Pages: pages}}, Data: imagetest.Tagged(start+1, pages)}
						errs[k] = errors.Join(errs[k], w.PutPages(0, b))
					}
				})
				crew.Go(func() {
					errs[workers+k] = w.PutFile(fmt.Sprintf("core-%d.img", k), bytes.NewReader(imagetest.Tagged(uint64(k), 100)))
				})
			}
			crew.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			imagetest.Finish(t, w, present)
			src, err := store.OpenFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			c := imagetest.Open(t, src)
			checkBlocks(t, c, want)
			for k := range workers {
				if !bytes.Equal(imagetest.FileOf(t, c, fmt.Sprintf("core-%d.img", k)), imagetest.Tagged(uint64(k), 100)) {
					t.Errorf("file %d differs", k)
				}
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 4 {
				t.Errorf("there are %d files", len(entries))
			}
		})
	}
}
