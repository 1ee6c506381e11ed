package image

import (
	"cmp"
	"fmt"
	"slices"
)

// Range is a range of addresses of one process, in bytes. Both ends are multiples of PageSize.
type Range struct {
	Start, End uint64 // End is not part of it
}

// Len is the range's length in bytes.
func (r Range) Len() uint64 { return r.End - r.Start }

// Check sees that the range can be part of an address space.
func (r Range) Check() error {
	if r.Start >= r.End || r.End > MaxAddr || r.Start%PageSize != 0 || r.End%PageSize != 0 {
		return fmt.Errorf("%#x-%#x is no range of pages", r.Start, r.End)
	}
	return nil
}

// Coalesce returns ranges sorted, with those that overlap or touch joined. Empty ranges vanish.
func Coalesce(ranges []Range) ([]Range, error) {
	sorted := slices.DeleteFunc(slices.Clone(ranges), func(r Range) bool { return r.Start == r.End })
	slices.SortFunc(sorted, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	out := sorted[:0]
	for _, r := range sorted {
		if err := r.Check(); err != nil {
			return nil, fmt.Errorf("cannot finish the checkpoint: %w", err)
		}
		if n := len(out); n > 0 && out[n-1].End >= r.Start {
			out[n-1].End = max(out[n-1].End, r.End)
		} else {
			out = append(out, r)
		}
	}
	return out, nil
}

// Subtract takes what the sorted ranges b have out of the sorted ranges a.
func Subtract(a, b []Range) []Range {
	var rest []Range
	for _, r := range a {
		for len(b) > 0 && b[0].End <= r.Start {
			b = b[1:]
		}
		for i := 0; i < len(b) && b[i].Start < r.End; i++ {
			if b[i].Start > r.Start {
				rest = append(rest, Range{Start: r.Start, End: b[i].Start})
			}
			r.Start = min(max(b[i].End, r.Start), r.End)
		}
		if r.Start < r.End {
			rest = append(rest, r)
		}
	}
	return rest
}
