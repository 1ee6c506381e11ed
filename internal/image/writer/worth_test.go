package writer

import (
	"testing"

	"stasis/internal/image"
)

// TestWorth puts 2 GiB in order and sees how many pages are compared, of those that would give something and of those that would not.
// Blocks have 64 pages.
func TestWorth(t *testing.T) {
	const pages, mib = 2 << 30 / image.PageSize, 1 << 20 / image.PageSize
	tests := []struct {
		name  string
		gives func(page uint64) bool
		equal bool
		least float64 // of the pages that give something, compared at least
		most  float64 // of the others, compared at most
	}{
		{"nothing", func(uint64) bool { return false }, false, 0, 0.1},
		{"all differences", func(uint64) bool { return true }, false, 1, 0},
		{"one page in ten", func(page uint64) bool { return mix(page)%10 == 0 }, false, 0.99, 1},
		{"stretches of 32 MiB", func(page uint64) bool { return page/(32*mib)%2 == 0 }, false, 0.97, 0.15},
		{"stretches of 2 MiB, one in eight", func(page uint64) bool { return page/(2*mib)%8 == 0 }, false, 0.6, 0.3},
		{"the end alone", func(page uint64) bool { return page > pages-128*mib }, false, 0.8, 0.1},
		{"equal but for 1 MiB in 16", func(page uint64) bool { return page/mib%16 > 0 }, true, 0.99, 1},
		{"equal but for 6 MiB in 16", func(page uint64) bool { return page/mib%16 > 5 }, true, 0.98, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorth()
			w.salt = 1 // always the same blocks
			var there, tried [2]float64
			for page := range uint64(pages) {
				gives := 0
				if test.gives(page) {
					gives = 1
				}
				there[gives]++
				if !w.try(7, page, int(page/image.MaxPages)) {
					continue
				}
				tried[gives]++
				switch {
				case gives == 0:
					w.lost(7, page)
				case test.equal:
					w.gained(7, page, afterEqual)
				default:
					w.gained(7, page, afterDelta)
				}
			}
			if tried[1] < test.least*there[1] || tried[0] > test.most*there[0] {
				t.Errorf("compared %.0f of %.0f that give something, and %.0f of %.0f others", tried[1], there[1], tried[0], there[0])
			}
		})
	}
}
