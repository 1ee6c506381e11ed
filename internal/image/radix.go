package image

import "math/bits"

// keyed is a key and the position of what it belongs to.
type keyed struct {
	key uint64
	at  uint32
}

// radixSort sorts by key; what has equal keys keeps its order. Indexes have tens of thousands of addresses in almost any order,
// which this sorts ten times as fast as comparing them does.
func radixSort(items []keyed) []keyed {
	const digit = 11
	ones, zeros := uint64(0), ^uint64(0)
	for _, x := range items {
		ones |= x.key
		zeros &= x.key
	}
	differ := ones &^ zeros // bits that are not the same in all keys
	spare := make([]keyed, len(items))
	for shift := 0; shift < 64; shift += digit {
		if differ>>shift&(1<<digit-1) == 0 {
			continue
		}
		var place [1 << digit]int
		for _, x := range items {
			place[x.key>>shift&(1<<digit-1)]++
		}
		sum := 0
		for i, n := range place {
			place[i] = sum
			sum += n
		}
		for _, x := range items {
			d := x.key >> shift & (1<<digit - 1)
			spare[place[d]] = x
			place[d]++
		}
		items, spare = spare, items
	}
	return items
}

// sortExtents sorts by process and page, as radixSort does. It may return other memory than it was given.
func sortExtents(items []extent) []extent {
	const digit = 11
	ones, zeros := uint64(0), ^uint64(0)
	sorted, last := true, uint64(0)
	for i := range items {
		page := items[i].page
		ones |= page
		zeros &= page
		sorted = sorted && page >= last
		last = page
	}
	if sorted {
		return items
	}
	spare := make([]extent, len(items))
	for differ := ones &^ zeros; differ != 0; { // bits that are not the same in all
		shift := bits.TrailingZeros64(differ)
		differ &^= (1<<digit - 1) << shift
		var place [1 << digit]uint32
		for i := range items {
			place[items[i].page>>shift&(1<<digit-1)]++
		}
		sum := uint32(0)
		for i, n := range place {
			place[i] = sum
			sum += n
		}
		for _, x := range items {
			d := &place[x.page>>shift&(1<<digit-1)]
			spare[*d] = x
			*d++
		}
		items, spare = spare, items
	}
	return items
}
