package tables

import (
	"cmp"
	"math/bits"
	"slices"

	"stasis/internal/image/ondisk"
)

// extentRun is how many extents are sorted in a copy of them, 64 KiB. More are divided first, where they are.
const extentRun = 4096

// sortExtents sorts by process and page, in place: of a large process these are what takes most of its reader's memory. None of them
// has the page of another.
func sortExtents(items []ondisk.Piece) {
	var spare [extentRun]ondisk.Piece
	divide(items, spare[:])
}

// divide sorts items by their highest digit until there are few enough with the same one for a copy.
func divide(items, spare []ondisk.Piece) {
	const digit = 11
	for len(items) > len(spare) {
		differ, sorted := compareExtents(items)
		if sorted {
			return
		}
		shift := max(bits.Len64(differ)-digit, 0)
		at := func(e *ondisk.Piece) uint64 { return e.Page >> shift & (1<<digit - 1) }
		var next, end [1 << digit]uint32
		for i := range items {
			end[at(&items[i])]++
		}
		sum := uint32(0)
		for d := range end {
			next[d] = sum
			sum += end[d]
			end[d] = sum
		}
		for d := range next {
			for next[d] < end[d] {
				e := items[next[d]]
				for to := at(&e); to != uint64(d); to = at(&e) {
					e, items[next[to]] = items[next[to]], e
					next[to]++
				}
				items[next[d]] = e
				next[d]++
			}
		}
		// All but the largest by themselves; that one in the next turn, so that this never goes deep.
		largest, from := 0, uint32(0)
		for d := range end {
			if end[d]-from > end[largest]-start(end[:], largest) {
				largest = d
			}
			from = end[d]
		}
		from = 0
		for d := range end {
			if d != largest {
				divide(items[from:end[d]], spare)
			}
			from = end[d]
		}
		items = items[start(end[:], largest):end[largest]]
	}
	sortFew(items, spare[:len(items)])
}

// start is where the items of a digit begin.
func start(end []uint32, digit int) uint32 {
	if digit == 0 {
		return 0
	}
	return end[digit-1]
}

// compareExtents returns the bits of pages that are not the same in all, and whether they are in order.
func compareExtents(items []ondisk.Piece) (differ uint64, sorted bool) {
	ones, zeros, last := uint64(0), ^uint64(0), uint64(0)
	sorted = true
	for i := range items {
		page := items[i].Page
		ones |= page
		zeros &= page
		sorted = sorted && page >= last
		last = page
	}
	return ones &^ zeros, sorted
}

// sortFew is what package radix does, for extents, with space for a copy of them.
func sortFew(items, spare []ondisk.Piece) {
	const digit = 8
	if len(items) < 64 {
		slices.SortFunc(items, func(a, b ondisk.Piece) int { return cmp.Compare(a.Page, b.Page) })
		return
	}
	differ, sorted := compareExtents(items)
	if sorted {
		return
	}
	from, to := items, spare
	for differ != 0 {
		shift := bits.TrailingZeros64(differ)
		differ &^= (1<<digit - 1) << shift
		var place [1 << digit]uint32
		for i := range from {
			place[from[i].Page>>shift&(1<<digit-1)]++
		}
		sum := uint32(0)
		for i, n := range place {
			place[i] = sum
			sum += n
		}
		for _, x := range from {
			d := &place[x.Page>>shift&(1<<digit-1)]
			to[*d] = x
			*d++
		}
		from, to = to, from
	}
	copy(items, from) // nothing where it is there already
}
