package tables_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store/storetest"
)

// Runs says of every page what Find and Block say of it one by one, in order, and joins what is alike.
func TestRuns(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	const pages, pid = 300, 77
	build := func(parent *reader.Checkpoint) *reader.Checkpoint {
		memory := storetest.NewMemory()
		options := writer.Options{Shards: 2, Codec: imagetest.NewCodec(t, "lz4"), ID: [16]byte{byte(random.Uint32()), 1}}
		if parent != nil {
			options.Parent, options.ParentPath = parent, "../parent"
		}
		w, err := writer.New(memory, options)
		if err != nil {
			t.Fatal(err)
		}
		var present []image.Range
		for page := uint64(16); page < 16+pages; page++ {
			if page%50 > 40 {
				continue // not there
			}
			present = append(present, image.Range{Start: page * image.PageSize, End: (page + 1) * image.PageSize})
			data := make([]byte, image.PageSize)
			switch kind := page / 20 % 4; {
			case kind == 0: // zeros
			case kind == 1: // the same in both
				copy(data, strings.Repeat(string(rune('a'+page%26)), image.PageSize))
				data[0] = byte(page)
			case kind == 2 || parent == nil: // nothing alike
				for i := range data {
					data[i] = byte(random.Uint32())
				}
			}
			if err := w.PutPages(0, image.PageBlock{PID: pid, Extents: []image.Extent{{Addr: page * image.PageSize, Pages: 1}}, Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.PutFile("x.img", strings.NewReader(strings.Repeat("state", 200000))); err != nil {
			t.Fatal(err)
		}
		if err := w.Finish(map[int][]image.Range{pid: present}, &image.Manifest{Kind: image.KindFull}); err != nil {
			t.Fatal(err)
		}
		c, err := reader.Open(memory)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	parent := build(nil)
	child := build(parent)
	origins := map[int]int{}
	for _, c := range []*reader.Checkpoint{parent, child} {
		at, total := uint64(0), uint64(0)
		var last image.Run
		for run := range c.Runs(pid) {
			if run.Start < at || run.Len() == 0 || run.Start == last.End && run.Zero == last.Zero && run.Origin == last.Origin && run.Delta == last.Delta {
				t.Fatalf("%+v comes after %+v", run, last)
			}
			for at = run.Start; at < run.End; at += image.PageSize {
				block, _, kind := c.Find(pid, at)
				if (kind == image.Zero) != run.Zero || kind == image.Absent {
					t.Fatalf("%#x: %+v, and Find says %v", at, run, kind)
				}
				if kind == image.Data && (c.Block(block).Origin != run.Origin || c.Block(block).Delta != run.Delta) {
					t.Fatalf("%#x: %+v, and its block is %+v", at, run, c.Block(block))
				}
			}
			total += run.Len()
			origins[run.Origin]++
			last = run
		}
		var want uint64
		for _, r := range c.Ranges(pid) {
			want += r.Len()
		}
		if total != want {
			t.Errorf("the runs have %d bytes, and there are %d", total, want)
		}
		for range c.Runs(pid) {
			break // ending early is no harm
		}
		for range c.Runs(1) {
			t.Error("a process that is not there has runs")
		}
		end := int64(0)
		for _, p := range c.FilePieces("x.img") {
			if p.Offset != end || (p.Origin > 0) != (c == child) {
				t.Errorf("%+v comes at %d", p, end)
			}
			end += p.Len
		}
		if end != 1000000 || c.FilePieces("y.img") != nil {
			t.Errorf("its pieces have %d bytes", end)
		}
	}
	if origins[1] == 0 {
		t.Error("nothing refers to the parent")
	}
}
