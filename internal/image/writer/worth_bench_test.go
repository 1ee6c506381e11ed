package writer_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
)

// BenchmarkPutPart puts a part of a process of 512 MiB on top of a parent that is in the page cache, by two goroutines: pages that were
// rewritten, pages of which eight bytes changed, and both in stretches of 32 MiB. "full" has no parent. What counts is cpu-ms, the time
// on all CPUs together, and what is stored for a page.
func BenchmarkPutPart(b *testing.B) {
	const size, stretch = 512 << 20, 32 << 20 / image.PageSize
	fresh := imagetest.HeapPages(4096, 9)
	rewritten := func(p int, to []byte) {
		copy(to, fresh[p%4096*image.PageSize:][:image.PageSize])
		binary.LittleEndian.PutUint64(to, uint64(p)<<20|2)
	}
	for _, codecName := range []string{"none", "lz4"} {
		_, parent, page := imagetest.HeapParent(b, size, codecName)
		little := func(p int, to []byte) {
			page(p, to)
			binary.LittleEndian.PutUint64(to[p*64%image.PageSize:], uint64(p)<<20|1)
		}
		mixed := func(p int, to []byte) {
			if p/stretch%2 == 0 {
				rewritten(p, to)
			} else {
				little(p, to)
			}
		}
		same := func(p int, to []byte) {
			if p/stretch%2 == 0 {
				rewritten(p, to)
			} else {
				page(p, to)
			}
		}
		for _, kind := range []struct {
			name string
			to   func(p int, to []byte)
			on   *reader.Checkpoint
		}{{"full", rewritten, nil}, {"rewritten", rewritten, parent}, {"little", little, parent}, {"mixed", mixed, parent}, {"half-same", same, parent}} {
			for _, percent := range []int{1, 20, 100} {
				if kind.on == nil && percent < 100 {
					continue
				}
				b.Run(fmt.Sprintf("%s/%s/%d%%", codecName, kind.name, percent), func(b *testing.B) {
					putPart(b, writer.Options{Shards: 4, Codec: imagetest.NewCodec(b, codecName), ID: [16]byte{1}, Parent: kind.on}, size, percent, kind.to)
				})
			}
		}
	}
}

func putPart(b *testing.B, o writer.Options, size, percent int, content func(p int, to []byte)) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	var pages []int
	for p := range size / image.PageSize {
		if r.IntN(100) < percent {
			pages = append(pages, p)
		}
	}
	var blocks []image.PageBlock
	for chunk := range slices.Chunk(pages, image.MaxPages) {
		block := image.PageBlock{PID: 7, Data: make([]byte, len(chunk)*image.PageSize)}
		for n, p := range chunk {
			content(p, block.Data[n*image.PageSize:])
			block.Extents = image.AppendPage(block.Extents, uint64(p))
		}
		blocks = append(blocks, block)
	}
	var stored, cpu int64
	for b.Loop() {
		w, err := writer.New(imagetest.Discard{}, o)
		if err != nil {
			b.Fatal(err)
		}
		before := cpuTime(b)
		var crew sync.WaitGroup
		for k := range 2 {
			crew.Go(func() {
				for i := k; i < len(blocks); i += 2 {
					if err := w.PutPages(0, blocks[i]); err != nil {
						b.Error(err)
					}
				}
			})
		}
		crew.Wait()
		cpu += cpuTime(b) - before
		_, stored = w.Written()
	}
	b.ReportMetric(float64(cpu)/1e6/float64(b.N), "cpu-ms")
	b.ReportMetric(float64(stored)/float64(len(pages)), "bytes/page")
	b.ReportMetric(0, "ns/op") // the machine may be busy
}

// cpuTime is what this process has used of all CPUs, in nanoseconds.
func cpuTime(b *testing.B) int64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
