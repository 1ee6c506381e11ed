package delta

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// Patch is a run of bytes of a page that differ from another page.
type Patch struct{ at, n uint16 }

// patchCost is about what a patch takes beside its bytes.
const patchCost = 3

// Diff appends to runs, whose storage is used again, what differs between two pages. It gives up, with ok false, where that is
// more than limit bytes.
func Diff(runs []Patch, old, page []byte, limit int) (out []Patch, ok bool) {
	cost := 0
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(page[i:]) ^ binary.LittleEndian.Uint64(old[i:]) }
	for i := 0; i < image.PageSize; i += 8 {
		x := word(i)
		if x == 0 {
			continue
		}
		start := i + bits.TrailingZeros64(x)/8
		for ; i+8 < image.PageSize; i += 8 {
			next := word(i + 8)
			if next == 0 {
				break
			}
			x = next
		}
		end := i + 8 - bits.LeadingZeros64(x)/8
		if cost += end - start + patchCost; cost > limit {
			return runs, false
		}
		runs = append(runs, Patch{uint16(start), uint16(end - start)})
	}
	return runs, true
}

// Builder collects a block of differences. Numbers and bytes are kept apart, because they compress better so.
type Builder struct {
	Extents           []image.Extent
	Bases             []ondisk.Base
	blocks            int // how often the block of the base is another one than before
	numbers, literals []byte
}

// MaxBases bounds how many blocks must be read to read a block of differences whose pages are far apart: whoever waits for one of
// the pages waits for all of these.
const MaxBases = 16

// Reset begins another block.
func (d *Builder) Reset() {
	d.Extents, d.Bases, d.blocks, d.numbers, d.literals = d.Extents[:0], d.Bases[:0], 0, d.numbers[:0], d.literals[:0]
}

// Full says whether a page of that base has to go into another block.
func (d *Builder) Full(from ondisk.Base) bool { return d.blocks == MaxBases && d.isOther(from) }

// isOther says whether the base is in another block than that of the page before.
func (d *Builder) isOther(from ondisk.Base) bool {
	return len(d.Bases) == 0 || d.Bases[len(d.Bases)-1].Block != from.Block
}

// Add appends a page.
func (d *Builder) Add(at uint64, from ondisk.Base, runs []Patch, page []byte) {
	if d.isOther(from) {
		d.blocks++
	}
	d.Extents, d.Bases = image.AppendPage(d.Extents, at), append(d.Bases, from)
	d.numbers = binary.AppendUvarint(d.numbers, uint64(len(runs)))
	end := uint16(0)
	for _, r := range runs {
		d.numbers = binary.AppendUvarint(d.numbers, uint64(r.at-end))
		d.numbers = binary.AppendUvarint(d.numbers, uint64(r.n))
		d.literals = append(d.literals, page[r.at:r.at+r.n]...)
		end = r.at + r.n
	}
}

// AddEncoded appends the i-th page of another block.
func (d *Builder) AddEncoded(at uint64, from ondisk.Base, of *Pages, i int) {
	begin, end := of.span(i)
	if d.isOther(from) {
		d.blocks++
	}
	d.Extents, d.Bases = image.AppendPage(d.Extents, at), append(d.Bases, from)
	d.numbers = append(d.numbers, of.numbers[begin.number:end.number]...)
	d.literals = append(d.literals, of.Literals[begin.literal:end.literal]...)
}

// AppendPayload appends the payload of the block.
func (d *Builder) AppendPayload(b []byte) []byte {
	return append(append(b, d.numbers...), d.literals...)
}

// errDelta says that a block of differences can't be as it was written. Its checksum should have found that.
var errDelta = errors.New("its differences are nonsense although its checksum matches")

// Pages is the payload of a block of differences, taken apart.
type Pages struct {
	numbers, Literals []byte
	at                []deltaAt // of each page
}

// deltaAt is where a page begins in numbers and literals.
type deltaAt struct{ number, literal uint32 }

// Parse checks the payload for a block of that many pages, and keeps it. After that patch can't fail.
func (d *Pages) Parse(payload []byte, pages int) error {
	rest, total := payload, uint64(0)
	number := func(limit uint64) (v uint64, ok bool) {
		v, n := binary.Uvarint(rest)
		if n <= 0 || v > limit {
			return 0, false
		}
		rest = rest[n:]
		return v, true
	}
	d.at = d.at[:0]
	for range pages {
		d.at = append(d.at, deltaAt{uint32(len(payload) - len(rest)), uint32(total)})
		runs, ok := number(image.PageSize)
		end := uint64(0)
		for ; ok && runs > 0; runs-- {
			var gap, n uint64
			if gap, ok = number(image.PageSize - end); ok {
				n, ok = number(image.PageSize - end - gap)
			}
			end += gap + n
			total += n
		}
		if !ok || total > uint64(len(rest)) {
			return errDelta
		}
	}
	if total != uint64(len(rest)) {
		return errDelta
	}
	d.numbers, d.Literals = payload[:len(payload)-len(rest)], rest
	return nil
}

// Size is about how much it holds, in bytes.
func (d *Pages) Size() int { return cap(d.numbers) + cap(d.Literals) + 8*cap(d.at) }

// Only returns a copy that has some of the pages, a bit for each, and takes no more than these need.
func (d *Pages) Only(pages uint64) Pages {
	var out Pages
	total := deltaAt{}
	for left := pages; left != 0; left &= left - 1 {
		from, to := d.span(bits.TrailingZeros64(left))
		total.number += to.number - from.number
		total.literal += to.literal - from.literal
	}
	space := make([]byte, 0, total.number+total.literal)
	out.numbers, out.Literals = space[0:0:total.number], space[total.number:total.number]
	out.at = make([]deltaAt, 0, bits.OnesCount64(pages))
	for left := pages; left != 0; left &= left - 1 {
		from, to := d.span(bits.TrailingZeros64(left))
		out.at = append(out.at, deltaAt{uint32(len(out.numbers)), uint32(len(out.Literals))})
		out.numbers = append(out.numbers, d.numbers[from.number:to.number]...)
		out.Literals = append(out.Literals, d.Literals[from.literal:to.literal]...)
	}
	return out
}

// span is where a page begins and where it ends.
func (d *Pages) span(i int) (from, to deltaAt) {
	if i+1 < len(d.at) {
		return d.at[i], d.at[i+1]
	}
	return d.at[i], deltaAt{uint32(len(d.numbers)), uint32(len(d.Literals))}
}

// Patch makes of the page that the i-th one differs from that one.
func (d *Pages) Patch(i int, page []byte) {
	numbers, literals := d.numbers[d.at[i].number:], d.Literals[d.at[i].literal:]
	next := func() int {
		v, n := binary.Uvarint(numbers)
		numbers = numbers[n:]
		return int(v)
	}
	end := 0
	for runs := next(); runs > 0; runs-- {
		at := end + next()
		end = at + next()
		literals = literals[copy(page[at:end], literals):]
	}
}
