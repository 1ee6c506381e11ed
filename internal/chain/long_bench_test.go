package chain

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/families"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// longLine makes a chain of so many checkpoints of 50 MiB, of which each writes 64 pages here and there, and returns the folder of the
// last.
func longLine(tb testing.TB, root string, depth int) string {
	tb.Helper()
	const pages, written = 12800, 64
	lz4, err := codec.New("lz4", 0)
	if err != nil {
		tb.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	top := ""
	for i := range depth {
		dir := filepath.Join(root, fmt.Sprintf("c%03d", i))
		var id [16]byte
		binary.BigEndian.PutUint64(id[:], uint64(depth)<<32+uint64(i)+1)
		o := writer.Options{Shards: 2, Codec: lz4, ID: id}
		if top != "" {
			if o.Parent, err = Open(top); err != nil {
				tb.Fatal(err)
			}
			o.ParentPath = filepath.Join("..", filepath.Base(top))
		}
		target, err := store.CreateFolder(dir)
		if err != nil {
			tb.Fatal(err)
		}
		w, err := writer.New(target, o)
		if err != nil {
			tb.Fatal(err)
		}
		n := written
		if i == 0 {
			n = pages
		}
		for from := 0; from < n; from += image.MaxPages {
			b := image.PageBlock{PID: 7}
			for k := range image.MaxPages {
				page := from + k
				if i > 0 {
					page = k*(pages/written) + r.IntN(pages/written)
				}
				b.Extents = append(b.Extents, image.Extent{Addr: uint64(0x1000+page) * image.PageSize, Pages: 1})
				b.Data = append(b.Data, pageOf(3*uint64(i*pages+page)+3)...)
			}
			if err := w.PutPages(0, b); err != nil {
				tb.Fatal(err)
			}
		}
		m := &image.Manifest{Kind: image.KindFull, Created: time.Unix(int64(i), 0), RootPID: 7, Processes: []image.Process{{PID: 7, Comm: "test"}}}
		if o.Parent != nil {
			m.Depth = o.Parent.Manifest().Depth + 1
		}
		if err := w.Finish(map[int][]image.Range{7: {{Start: 0x1000 * image.PageSize, End: (0x1000 + pages) * image.PageSize}}}, m); err != nil {
			tb.Fatal(err)
		}
		if o.Parent != nil {
			if err := o.Parent.Close(); err != nil {
				tb.Fatal(err)
			}
		}
		top = dir
	}
	return top
}

// BenchmarkLongChain reads a checkpoint as a restore does: hold it, open it, see that all ancestors are there, read all memory.
func BenchmarkLongChain(b *testing.B) {
	for _, depth := range []int{2, 500} {
		dir := longLine(b, b.TempDir(), depth)
		b.Run(fmt.Sprint(depth), func(b *testing.B) {
			for b.Loop() {
				readAll(b, dir)
			}
		})
		b.Run(fmt.Sprintf("%d/list", depth), func(b *testing.B) {
			for b.Loop() {
				if _, err := List(filepath.Dir(dir)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func readAll(b *testing.B, dir string) {
	b.Helper()
	at := time.Now()
	part := func(name string) {
		now := time.Now()
		b.ReportMetric(float64(now.Sub(at).Microseconds())/1000, name+"-ms")
		at = now
	}
	lock, err := LockShared(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	part("lock")
	c, err := lock.Open()
	if err != nil {
		b.Fatal(err)
	}
	part("open")
	if missing := lock.Missing(); len(missing) > 0 {
		b.Fatal(missing)
	}
	part("missing")
	f := families.Of(c)
	var all sync.WaitGroup
	for worker := range 2 {
		all.Go(func() {
			var buf reader.Buffer
			for i := worker; i < f.Blocks(); i += 2 {
				if _, err := f.ReadBlock(i, &buf); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
	part("read")
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
	if err := lock.Unlock(); err != nil {
		b.Fatal(err)
	}
	part("close")
}
