package plan

import (
	"errors"
	"math/rand/v2"
	"testing"

	"stasis/internal/image"
)

// TestResolveAgainstNaive compares resolve with a map from page to the newest claim.
func TestResolveAgainstNaive(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		const space = 60
		type owner struct{ block, first uint32 }
		newest := map[uint64]owner{}
		var claims []claim
		for i := range r.IntN(25) {
			c := claim{page: r.Uint64N(space), pages: 1 + r.Uint64N(12), order: uint64(i), block: r.Uint32N(4), first: r.Uint32N(5)}
			if r.IntN(3) == 0 {
				c.block, c.first = zeroBlock, 0
			}
			claims = append(claims, c)
			for p := range c.pages {
				o := owner{c.block, c.first + uint32(p)}
				if c.block == zeroBlock {
					o.first = 0
				}
				newest[c.page+p] = o
			}
		}
		r.Shuffle(len(claims), func(i, j int) { claims[i], claims[j] = claims[j], claims[i] })
		var present []image.Range
		for range r.IntN(6) {
			start := r.Uint64N(space + 10)
			present = append(present, runOf(start, r.Uint64N(20)))
		}
		if r.IntN(2) == 0 { // only what is there, so that nothing is missing
			present = nil
			for p := range newest {
				if r.IntN(4) > 0 {
					present = append(present, runOf(p, 1))
				}
			}
		}
		joined, err := image.Coalesce(present)
		if err != nil {
			t.Fatal(err)
		}
		want := map[uint64]bool{}
		missing := uint64(0)
		for _, x := range present {
			for p := x.Start / image.PageSize; p < x.End/image.PageSize; p++ {
				if _, ok := newest[p]; !ok && !want[p] {
					missing++
				}
				want[p] = true
			}
		}
		got, gaps := resolve(claims, joined)
		var m *image.MissingError
		if errors.As(missingPages(7, gaps), &m) {
			if m.Pages != missing || m.PID != 7 || m.First.Start >= m.First.End {
				t.Fatalf("seed %d: %d pages are missing, reported is %v", seed, missing, m)
			}
		} else if missing > 0 {
			t.Fatalf("seed %d: %d pages are missing, and nothing is reported", seed, missing)
		}
		end, pages := uint64(0), 0
		for _, c := range got {
			if c.page < end || c.pages == 0 {
				t.Fatalf("seed %d: %v overlaps or is not in order", seed, got)
			}
			end = c.end()
			for p := range c.pages {
				o := owner{c.block, c.first + uint32(p)}
				if c.block == zeroBlock {
					o.first = 0
				}
				if !want[c.page+p] || newest[c.page+p] != o {
					t.Fatalf("seed %d: page %d is %v instead of %v", seed, c.page+p, o, newest[c.page+p])
				}
				pages++
			}
		}
		if pages+int(missing) != len(want) {
			t.Fatalf("seed %d: %d pages and %d missing instead of %d", seed, pages, missing, len(want))
		}
	}
}

func runOf(page, pages uint64) image.Range {
	return image.Range{Start: page * image.PageSize, End: (page + pages) * image.PageSize}
}
