package image

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSortExtents compares with the library's sort, for pages here and there and for such as a dump leaves.
func TestSortExtents(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	for _, n := range []int{0, 1, 2, 63, 64, 1000, extentRun, extentRun + 1, 20000, 100000} {
		for name, page := range map[string]func(i int) uint64{
			"sorted":     func(i int) uint64 { return uint64(i) },
			"turned":     func(i int) uint64 { return uint64(n - i) },
			"everywhere": func(int) uint64 { return r.Uint64() },
			"one heap":   func(i int) uint64 { return 3<<pageBits | 0x555555000 + uint64(i*7919%max(n, 1)) },
			"two heaps":  func(i int) uint64 { return uint64(i%2)<<40 | uint64(i*7919%max(n, 1)) },
			"two far":    func(i int) uint64 { return uint64(i%2) << 63 },
		} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				items := make([]extent, n)
				for i := range items {
					items[i] = extent{page: page(i), block: uint32(i), pages: uint8(i), first: uint8(i >> 8)}
				}
				want := slices.Clone(items)
				all := func(a, b extent) int { return cmp.Or(cmp.Compare(a.page, b.page), cmp.Compare(a.block, b.block)) }
				slices.SortFunc(want, all)
				sortExtents(items)
				if !slices.IsSortedFunc(items, func(a, b extent) int { return cmp.Compare(a.page, b.page) }) {
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
