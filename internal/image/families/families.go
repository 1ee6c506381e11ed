package families

import (
	"math/bits"
	"slices"
	"sort"

	"stasis/internal/image"
	"stasis/internal/image/delta"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/radix"
	"stasis/internal/image/reader"
)

// Families is the memory of a checkpoint for whoever reads all of it, or much. It numbers not blocks but families: the pages of a
// block, and those that are differences from pages of it. So each block is read and decompressed once, where ReadBlock of a
// [reader.Checkpoint] reads for each block of differences all blocks that these differ from: in a long chain, whose differences are from
// pages here and there, that is a hundred times the memory.
//
// Its methods are those of the checkpoint, with families for blocks, and may be called from any number of goroutines. It ends with
// its checkpoint.
type Families struct {
	c        *reader.Checkpoint
	families []family // sorted by process and lowest address
	riders   []rider  // family by family, in the order of their blocks
	slots    []uint32 // where a page of differences is, by the number of its base in Tables.Bases: its position in riders
	ofBlock  []uint32 // the family that has the pages of a block; ondisk.NoBlock for blocks that have none
	wanted   []uint64 // of each block, a bit for each of its pages that is somewhere in memory
	deltas   deltaCache
}

// family is a block of pages, or none (all of its pages that are wanted are in an earlier family), and riders.
type family struct {
	block    uint32
	from, to uint32 // in Families.riders
	pages    uint8  // of its data, at most 2*MaxPages
	rest     bool   // without the block's own pages
}

// rider is a page of a block of differences.
type rider struct {
	block uint32 // of differences
	page  uint8
	base  uint8 // page of the family's block
	slot  uint8 // page of the family's data
}

// Of groups the checkpoint's pages.
func Of(c *reader.Checkpoint) *Families {
	f := &Families{c: c, slots: make([]uint32, len(c.Bases)), ofBlock: make([]uint32, len(c.BlockTable)), wanted: c.WantedPages()}
	byBase, starts := f.gather()
	lowest := f.lowest(byBase, starts)
	f.riders = make([]rider, 0, len(byBase))
	for _, k := range radix.Sort(lowest) {
		f.add(k.At, byBase[starts[k.At]:starts[k.At+1]], f.wanted[k.At])
	}
	return f
}

// gather lists the riders by the block that they need; those of block i begin at starts[i].
func (f *Families) gather() (riders []rider, starts []uint32) {
	c := f.c
	starts = make([]uint32, len(c.BlockTable)+1)
	each := func(do func(number uint32, page int, of ondisk.Base)) {
		for i := range c.BlockTable[:c.Live] {
			if k := &c.BlockTable[i]; k.Kind == ondisk.KindDifferences {
				for page, of := range c.BasesOf(k) {
					if f.wanted[i]>>page&1 != 0 {
						do(uint32(i), page, of)
					}
				}
			}
		}
	}
	each(func(_ uint32, _ int, of ondisk.Base) { starts[of.Block+1]++ })
	for i := 1; i < len(starts); i++ {
		starts[i] += starts[i-1]
	}
	riders, next := make([]rider, starts[len(starts)-1]), slices.Clone(starts)
	each(func(number uint32, page int, of ondisk.Base) {
		riders[next[of.Block]] = rider{block: number, page: uint8(page), base: of.Page}
		next[of.Block]++
	})
	return riders, starts
}

// lowest lists the blocks that families are made of, by their lowest place in Tables.Extents, which is sorted by address.
func (f *Families) lowest(byBase []rider, starts []uint32) []radix.Item {
	c := f.c
	out := make([]radix.Item, 0, len(c.BlockTable))
	for i := range c.BlockTable {
		f.ofBlock[i] = ondisk.NoBlock
		if c.BlockTable[i].Kind == ondisk.KindDifferences {
			continue
		}
		low := ondisk.NoBlock
		if i < c.Live {
			low = c.ByBlock[c.Firsts[i]]
		}
		for _, r := range byBase[starts[i]:starts[i+1]] {
			f.places(r, func(at uint32) { low = min(low, at) })
		}
		out = append(out, radix.Item{Key: uint64(low), At: uint32(i)})
	}
	return out
}

// places calls visit with the position in Tables.Extents of each place where a rider belongs.
func (f *Families) places(r rider, visit func(at uint32)) {
	c := f.c
	for _, at := range c.ByBlock[c.Firsts[r.block]:c.Firsts[r.block+1]] {
		if e := &c.Extents[at]; r.page-e.First < e.Pages {
			visit(at)
		}
	}
}

// add makes families of a block and its riders. A rider takes the place of its base where nobody wants that one: neighbours then
// are neighbours in the data, too.
func (f *Families) add(block uint32, riders []rider, taken uint64) {
	pages := f.c.BlockTable[block].Pages
	one := family{block: block, from: uint32(len(f.riders)), pages: pages}
	f.ofBlock[block] = uint32(len(f.families))
	for _, r := range riders {
		if one.pages == 2*image.MaxPages || one.rest && one.pages == image.MaxPages {
			one.to = uint32(len(f.riders))
			f.families = append(f.families, one)
			one = family{block: block, from: one.to, rest: true}
		}
		if !one.rest && taken>>r.base&1 == 0 {
			r.slot = r.base
			taken |= 1 << r.base
		} else {
			r.slot = one.pages
			one.pages++
		}
		f.slots[f.c.BlockTable[r.block].Base+uint32(r.page)] = uint32(len(f.riders))
		f.riders = append(f.riders, r)
	}
	one.to = uint32(len(f.riders))
	f.families = append(f.families, one)
}

// Blocks is the number of families. They are numbered by the process and address of the first page that they have.
func (f *Families) Blocks() int { return len(f.families) }

// Block describes a family: its block, and which of its pages belong where. Raw is the length of its data.
func (f *Families) Block(i int) image.BlockInfo {
	one, c := &f.families[i], f.c
	b := &c.BlockTable[one.block]
	info := image.BlockInfo{Origin: int(b.Origin), Shard: int(b.Shard), Offset: b.Off, Stored: int(b.Stored), Raw: int(one.pages) * image.PageSize, Codec: b.Codec}
	info.Pieces = f.Pieces(i, nil)
	return info
}

// Pieces is [reader.Checkpoint.Pieces].
func (f *Families) Pieces(i int, list []image.Piece) []image.Piece {
	one, c := &f.families[i], f.c
	begin := len(list)
	if int(one.block) < c.Live && !one.rest {
		list = c.Pieces(int(one.block), list)
	}
	own := len(list)
	for _, r := range f.riders[one.from:one.to] {
		f.places(r, func(at uint32) {
			e := &c.Extents[at]
			list = append(list, image.Piece{PID: c.PIDOf(int(at)), Addr: (e.Page + uint64(r.page-e.First)) * image.PageSize, Pages: 1, First: uint32(r.slot)})
		})
	}
	if len(list) > own {
		list = append(list[:begin], joinPieces(list[begin:])...)
	}
	return list
}

// Bytes is [reader.Checkpoint.Bytes].
func (f *Families) Bytes(i int) int64 {
	one, n := &f.families[i], int64(0)
	if int(one.block) < f.c.Live && !one.rest {
		n = f.c.Bytes(int(one.block))
	}
	for _, r := range f.riders[one.from:one.to] {
		f.places(r, func(uint32) { n += image.PageSize })
	}
	return n
}

// joinPieces sorts pieces by address, and joins those that are neighbours in memory and in the data.
func joinPieces(pieces []image.Piece) []image.Piece {
	slices.SortFunc(pieces, func(a, b image.Piece) int {
		if a.PID != b.PID {
			return a.PID - b.PID
		}
		return int(int64(a.Addr) - int64(b.Addr))
	})
	out := pieces[:0]
	for _, p := range pieces {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.PID == p.PID && last.Addr+uint64(last.Pages)*image.PageSize == p.Addr && last.First+last.Pages == p.First {
				last.Pages += p.Pages
				continue
			}
		}
		out = append(out, p)
	}
	return out
}

// Find says where a page is: in which family, and which page of its data. Both mean something for Data only.
func (f *Families) Find(pid int, addr uint64) (number int, page uint32, kind image.Kind) {
	block, page, kind := f.c.Find(pid, addr)
	if kind != image.Data {
		return 0, 0, kind
	}
	k := &f.c.BlockTable[block]
	if k.Kind != ondisk.KindDifferences {
		return int(f.ofBlock[block]), page, image.Data
	}
	at := f.slots[k.Base+page]
	number = sort.Search(len(f.families), func(i int) bool { return f.families[i].to > at })
	return number, uint32(f.riders[at].slot), image.Data
}

// PIDs is [reader.Checkpoint.PIDs].
func (f *Families) PIDs() []int { return f.c.PIDs() }

// Ranges is [reader.Checkpoint.Ranges].
func (f *Families) Ranges(pid int) []image.Range { return f.c.Ranges(pid) }

// ZeroRanges is [reader.Checkpoint.ZeroRanges].
func (f *Families) ZeroRanges(pid int) []image.Range { return f.c.ZeroRanges(pid) }

// ReadBlock reads, checks and decompresses a family's block, and makes its other pages of it. Otherwise it is [reader.Checkpoint.ReadBlock].
// Pages of the data that nobody wants have any content.
func (f *Families) ReadBlock(i int, b *reader.Buffer) ([]byte, error) {
	one := &f.families[i]
	k := &f.c.BlockTable[one.block]
	if one.from == one.to {
		return f.c.ReadPayload(k, b, true)
	}
	own, err := f.c.ReadPayload(k, b, false)
	if err != nil {
		return nil, err
	}
	deltas, space := b.Space(2 * image.MaxBlock)
	out := space[:int(one.pages)*image.PageSize]
	if !one.rest {
		copy(out, own)
	}
	for _, r := range f.riders[one.from:one.to] {
		page := out[int(r.slot)*image.PageSize:][:image.PageSize]
		if one.rest || r.slot != r.base {
			copy(page, own[int(r.base)*image.PageSize:])
		}
		if err := f.patch(r, page, deltas); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// patch makes of a rider's base the rider.
func (f *Families) patch(r rider, page []byte, b *reader.Buffer) error {
	d := f.deltas.take(r.block, r.page)
	if d == nil {
		var err error
		if d, err = f.readDeltas(r.block, b); err != nil {
			return err
		}
		f.deltas.add(d, r.page)
	}
	d.Patch(bits.OnesCount64(d.pages&(1<<r.page-1)), page)
	return nil
}

// readDeltas reads a block of differences, and keeps those that are wanted.
func (f *Families) readDeltas(number uint32, b *reader.Buffer) (*keptDeltas, error) {
	k := &f.c.BlockTable[number]
	payload, err := f.c.ReadPayload(k, b, false)
	if err != nil {
		return nil, err
	}
	var all delta.Pages
	if err := all.Parse(payload, int(k.Pages)); err != nil {
		return nil, f.c.BlockDamage(k, "a block there can't be used", err)
	}
	d := &keptDeltas{number: number, pages: f.wanted[number], left: f.wanted[number]}
	d.Pages = all.Only(d.pages)
	return d, nil
}
