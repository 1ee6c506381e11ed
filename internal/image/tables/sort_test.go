package tables

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"stasis/internal/image/ondisk"
)

// TestSortExtents compares with the library's sort, for pages here and there and for such as a dump leaves.
func TestSortExtents(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	for _, n := range []int{0, 1, 2, 63, 64, 1000, extentRun, extentRun + 1, 20000, 100000} {
		for name, page := range map[string]func(i int) uint64{
			"sorted":     func(i int) uint64 { return uint64(i) },
			"turned":     func(i int) uint64 { return uint64(n - i) },
			"everywhere": func(int) uint64 { return r.Uint64() },
			"one heap":   func(i int) uint64 { return 3<<ondisk.PageBits | 0x555555000 + uint64(i*7919%max(n, 1)) },
			"two heaps":  func(i int) uint64 { return uint64(i%2)<<40 | uint64(i*7919%max(n, 1)) },
			"two far":    func(i int) uint64 { return uint64(i%2) << 63 },
		} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				items := make([]ondisk.Piece, n)
				for i := range items {
					items[i] = ondisk.Piece{Page: page(i), Block: uint32(i), Pages: uint8(i), First: uint8(i >> 8)}
				}
				want := slices.Clone(items)
				all := func(a, b ondisk.Piece) int { return cmp.Or(cmp.Compare(a.Page, b.Page), cmp.Compare(a.Block, b.Block)) }
				slices.SortFunc(want, all)
				sortExtents(items)
				if !slices.IsSortedFunc(items, func(a, b ondisk.Piece) int { return cmp.Compare(a.Page, b.Page) }) {
					t.Fatal("not in order")
				}
				slices.SortFunc(items, all) // what is equal may be in any order
				if !slices.Equal(items, want) {
					t.Fatal("not the same items")
				}
			})
		}
	}
}
