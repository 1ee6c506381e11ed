//go:build linux && (amd64 || arm64)

package pager

import (
	"context"
	"runtime"
	"strconv"
	"testing"
	"time"

	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// still is a checkpoint that costs nothing to read.
type still struct {
	pages int
	data  []byte
}

func newStill(pages int) *still { return &still{pages, make([]byte, image.MaxBlock)} }

func (s *still) Blocks() int { return s.pages / image.MaxPages }

func (s *still) Block(i int) image.BlockInfo {
	return image.BlockInfo{Pieces: []image.Piece{{PID: tenantPID, Addr: base + uint64(i)*image.MaxBlock, Pages: image.MaxPages}}}
}

func (s *still) Pieces(i int, list []image.Piece) []image.Piece {
	return append(list, s.Block(i).Pieces...)
}

func (s *still) Bytes(int) int64 { return image.MaxBlock }

func (s *still) ReadBlock(int, *reader.Buffer) ([]byte, error) { return s.data, nil }

func (s *still) Find(_ int, addr uint64) (int, uint32, image.Kind) {
	if addr < base || addr >= base+uint64(s.pages)*pageSize {
		return 0, 0, image.Absent
	}
	page := int(addr-base) / pageSize
	return page / image.MaxPages, uint32(page % image.MaxPages), image.Data
}

func (s *still) PIDs() []int { return []int{tenantPID} }

func (s *still) Ranges(int) []image.Range {
	return []image.Range{{Start: base, End: base + uint64(s.pages)*pageSize}}
}

// BenchmarkFill measures Fill alone, beside what it costs the kernel to
// populate as much memory with as many threads (the least that any fill takes).
// Both are the best of all iterations: memory that the hypervisor has to back
// first is ten times as slow, and that hits now the one and now the other.
func BenchmarkFill(b *testing.B) {
	const pages = 1 << 18 // 1 GiB
	for _, c := range []struct {
		name  string
		o     Options
		extra []string
	}{
		{"eager", Options{}, nil},
		{"eager-1-worker", Options{Workers: 1}, nil},
		{"eager-huge", Options{}, []string{"huge"}},
		{"lazy", Options{Lazy: true}, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			workers := c.o.Workers
			if workers == 0 {
				workers = runtime.NumCPU()
			}
			fill, populate := time.Hour, time.Hour
			for b.Loop() {
				b.StopTimer()
				h := open(b, newStill(pages), pages, c.o, c.extra...)
				h.ask("s")
				h.tell("P %d", workers)
				us, err := strconv.Atoi(h.answer())
				if err != nil {
					b.Fatal(err)
				}
				populate = min(populate, time.Duration(us)*time.Microsecond)
				b.StartTimer()
				begun := time.Now()
				if err := h.pager.Fill(context.Background()); err != nil {
					b.Fatal(err)
				}
				fill = min(fill, time.Since(begun))
				b.StopTimer()
				h.kill()
				b.StartTimer()
			}
			b.ReportMetric(pages*pageSize/fill.Seconds()/1e9, "GB/s")
			b.ReportMetric(pages*pageSize/populate.Seconds()/1e9, "populate-GB/s")
		})
	}
}

// BenchmarkFault measures how long one thread waits for a page of a block that
// has not been touched.
func BenchmarkFault(b *testing.B) {
	const blocks = 4096
	var h *house
	for i := 0; b.Loop(); i++ {
		if i%blocks == 0 {
			b.StopTimer()
			if h != nil {
				h.kill()
			}
			h = open(b, newStill(blocks*image.MaxPages), blocks*image.MaxPages, Options{Lazy: true})
			b.StartTimer()
		}
		h.ask("v %d 1 %d", i%blocks*image.MaxPages, zero)
	}
}
