package ondisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"

	"stasis/internal/codec"
	"stasis/internal/image"
)

// ErrIndex says that an index can't be as it was written. The checksum should have found that.
var ErrIndex = errors.New("its index is nonsense although its checksum matches")

// indexReader reads an index; after the first thing that can't be right it returns zeros and err is set.
type indexReader struct {
	column
	err error
}

// column is numbers that stand one after the other.
type column struct {
	b  []byte
	at int // of the next
}

// next reads a number; ok is false where there is none.
func (c *column) next() (v uint64, ok bool) {
	if c.at < len(c.b) && c.b[c.at] < 0x80 { // nearly all
		c.at++
		return uint64(c.b[c.at-1]), true
	}
	return c.long()
}

func (c *column) long() (v uint64, ok bool) {
	v, n := binary.Uvarint(c.b[c.at:])
	if n <= 0 {
		return 0, false
	}
	c.at += n
	return v, true
}

// signed is the number that a signed one was written as.
func signed(v uint64) uint64 { return v>>1 ^ -(v & 1) }

// skip passes so many numbers.
func (c *column) skip(n int) (ok bool) {
	at := c.at
	for ; n >= 8 && at+8 <= len(c.b); at += 8 { // each number ends with a byte below 0x80
		n -= 8 - bits.OnesCount64(le.Uint64(c.b[at:])&0x8080808080808080)
	}
	for ; n > 0 && at < len(c.b); at++ {
		if c.b[at] < 0x80 {
			n--
		}
	}
	c.at = at
	return n == 0
}

func (r *indexReader) left() int { return len(r.b) - r.at }

func (r *indexReader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrIndex, what)
	}
	r.b, r.at = nil, 0
}

// u reads a number of at most limit.
func (r *indexReader) u(limit uint64, what string) uint64 {
	v, ok := r.next()
	if !ok || v > limit {
		r.fail(what)
		return 0
	}
	return v
}

// s reads a difference and adds it to v, which must come out as at most limit.
func (r *indexReader) s(v, limit uint64, what string) uint64 {
	d, ok := r.next()
	v += signed(d) // wraps where the sum is negative, and is beyond any limit then
	if !ok || v > limit {
		r.fail(what)
		return 0
	}
	return v
}

// count reads how many things follow, each of which takes at least size bytes.
func (r *indexReader) count(size int, what string) int {
	return int(r.u(uint64(r.left()/size), what))
}

func (r *indexReader) bytes(n int, what string) []byte {
	if n > r.left() {
		r.fail(what)
		return make([]byte, n)
	}
	v := r.b[r.at : r.at+n]
	r.at += n
	return v
}

// DecodeIndex reads what encode wrote. What it returns is within all bounds by itself; how it fits the shards and the other
// indexes is for package tables to see.
func DecodeIndex(b []byte) (*Index, error) {
	x, err := DecodeBlocks(b)
	if err != nil {
		return nil, err
	}
	for i := range x.Groups {
		g := &x.Groups[i]
		if g.Pieces == nil {
			g.Pieces = make([]Piece, g.Count)
			if err := g.decodePieces(g.Pieces, 0, uint64(len(x.PIDs))); err != nil {
				return nil, err
			}
		}
		g.columns, g.Count = nil, 0
	}
	return x, nil
}

// DecodeBlocks is DecodeIndex without the pieces, which take nearly all of the time, where nothing behind them depends on them.
func DecodeBlocks(b []byte) (*Index, error) {
	r := indexReader{column: column{b: b}}
	x := new(Index)
	pid := uint64(0)
	procs := r.count(1, "processes")
	if procs > MaxProcs {
		r.fail("processes")
		return nil, r.err
	}
	for range procs {
		next := r.u(1<<31-1-pid, "pid")
		if next == 0 {
			r.fail("pid")
		}
		pid += next
		x.PIDs = append(x.PIDs, int(pid))
	}
	for range r.count(2, "files") {
		name := string(r.bytes(int(r.u(maxFileName, "file name")), "file name"))
		if err := CheckFileName(name); r.err == nil && err != nil {
			r.fail("file name")
		}
		x.Files = append(x.Files, image.FileInfo{Name: name, Size: int64(r.u(math.MaxInt64, "file size"))})
	}
	x.readZeros(&r)
	for range r.count(3, "groups") {
		g := Group{Origin: uint32(r.u(math.MaxUint16, "origin")), Shard: uint32(r.u(image.MaxShards-1, "shard"))}
		g.read(&r, uint64(len(x.PIDs)))
		if r.err != nil {
			return nil, r.err
		}
		x.Groups = append(x.Groups, g)
	}
	if r.left() > 0 {
		r.fail("something follows its end")
	}
	return x, r.err
}

func (x *Index) readZeros(r *indexReader) {
	n := r.count(3, "zero pages")
	x.Zeros = make([]ZeroRange, 0, n)
	proc, page := uint64(0), uint64(0)
	for range n {
		proc = r.s(proc, uint64(len(x.PIDs))-1, "process of zero pages")
		page = r.s(page, image.MaxAddr/image.PageSize-1, "address of zero pages")
		pages := r.u(image.MaxAddr/image.PageSize-page, "number of zero pages")
		if pages == 0 || len(x.PIDs) == 0 {
			r.fail("number of zero pages")
		}
		x.Zeros = append(x.Zeros, ZeroRange{uint32(proc), page, pages})
		page += pages
	}
}

// read reads the group's columns; procs is how many processes there are.
func (g *Group) read(r *indexReader, procs uint64) {
	const least = 1 + 1 + 1 + 1 + 2 + 8 // bytes of each block in the columns
	g.Blocks = make([]IndexBlock, r.count(least, "blocks"))
	for i, k := range r.bytes(len(g.Blocks), "kinds") {
		g.Blocks[i].Kind, g.Blocks[i].Codec = BlockKind(k>>4), codec.ID(k&15)
	}
	gaps := make([]uint64, len(g.Blocks)) // lengths are read first: an offset depends on those before it
	for i := range g.Blocks {
		gaps[i] = r.u(math.MaxInt64/Unit/2, "gap")
	}
	for i := range g.Blocks {
		g.Blocks[i].Stored = uint32(r.u(image.MaxBlock, "stored length"))
	}
	for i := range g.Blocks {
		g.Blocks[i].Raw = uint32(r.u(image.MaxBlock, "length"))
	}
	pieces, deltas := uint64(0), false
	for i := range g.Blocks {
		k := &g.Blocks[i]
		if k.Kind == KindFile {
			k.File = uint32(r.u(math.MaxUint32, "file"))
			k.Where = r.u(math.MaxInt64-image.MaxBlock, "place in file")
		} else {
			k.Heads = r.bytes(1, "extents")[0]
			k.Pages = uint8(k.Raw / image.PageSize)
			if k.Kind == KindDifferences {
				k.Pages = r.bytes(1, "pages of a block")[0]
				deltas = true
			}
			k.Pieces = uint32(r.u(uint64(r.left()), "pieces"))
			pieces += uint64(k.Pieces)
		}
	}
	end := int64(0)
	for i := range g.Blocks {
		k := &g.Blocks[i]
		k.Sum = le.Uint64(r.bytes(8, "checksums"))
		if gaps[i]*Unit > uint64(math.MaxInt64/2-end) {
			r.fail("offset")
			return
		}
		k.Off = end + int64(gaps[i]*Unit)
		end = k.Off + k.Len()
		if !k.possible() {
			r.fail("block")
		}
	}
	if r.err != nil || pieces > uint64(r.left()/4) {
		r.fail("pieces")
		return
	}
	g.Count = int(pieces)
	from := r.at
	if !r.skip(4 * g.Count) {
		r.fail("pieces")
		return
	}
	g.columns = r.b[from:r.at]
	if !deltas {
		return
	}
	g.Pieces = make([]Piece, g.Count)
	if r.err = g.decodePieces(g.Pieces, 0, procs); r.err == nil {
		g.readBases(r)
	}
}

// readBases reads what the pages of blocks of differences differ from: of each page that is in a piece, in order.
func (g *Group) readBases(r *indexReader) {
	count := 0
	g.EachDelta(func(_ int, pages uint64) { count += bits.OnesCount64(pages) })
	if count > r.left()/2 {
		r.fail("bases")
		return
	}
	g.Bases = make([]Base, count)
	block := uint64(0)
	for i := range g.Bases {
		block = r.s(block, math.MaxUint32, "block of a base")
		g.Bases[i].Block = uint32(block)
	}
	for i, page := range r.bytes(count, "bases") {
		g.Bases[i].Page = page
	}
}

// EachDelta calls f with the position of each block of differences and a bit for each of its pages that is in a piece.
func (g *Group) EachDelta(f func(at int, pages uint64)) {
	next := 0
	for i := range g.Blocks {
		k := &g.Blocks[i]
		if k.Kind == KindDifferences {
			pages := uint64(0)
			for _, p := range g.Pieces[next : next+int(k.Pieces)] {
				pages |= (1<<p.Pages - 1) << p.First
			}
			f(i, pages)
		}
		next += int(k.Pieces)
	}
}

func (b *IndexBlock) possible() bool {
	ok := b.Raw > 0 && b.Stored > 0 && b.Stored <= b.Raw && b.Codec.Valid() && (b.Codec != codec.None || b.Stored == b.Raw)
	switch b.Kind {
	case KindPages:
		return ok && b.Raw%image.PageSize == 0 && b.Heads > 0 && b.Heads <= image.MaxPages // without pieces it must be a base: see package tables
	case KindDifferences:
		return ok && b.Heads > 0 && b.Heads <= b.Pages && b.Pages <= image.MaxPages && b.Pieces > 0
	case KindFile:
		return ok
	}
	return false
}

// decodePieces takes the columns of the group's pieces apart. Its blocks of pages and differences are numbered from number on.
func (g *Group) decodePieces(out []Piece, number uint32, procs uint64) error {
	bad := func(what string) error { return fmt.Errorf("%w: %s", ErrIndex, what) }
	// An address depends on the number of pages before it, which stands behind all addresses; so all columns are read side by side.
	columns := [4]column{}
	for i, at := 0, 0; i < len(columns); i++ {
		columns[i] = column{g.columns, at}
		end := columns[i]
		end.skip(g.Count) // read has seen that they are all there
		at = end.at
	}
	procOf, steps, lengths, places := &columns[0], &columns[1], &columns[2], &columns[3]
	proc, page, next := uint64(0), uint64(0), 0
	for i := range g.Blocks {
		k := &g.Blocks[i]
		if k.Kind == KindFile {
			continue
		}
		first := uint64(0)
		for n := next + int(k.Pieces); next < n; next++ {
			d, ok1 := procOf.next()
			step, ok2 := steps.next()
			pages, ok3 := lengths.next()
			place, ok4 := places.next()
			proc += signed(d)
			page += signed(step)
			first += signed(place)
			switch {
			case !ok1 || proc >= procs:
				return bad("process of a piece")
			case !ok2 || !ok3 || pages == 0 || pages > image.MaxPages || page >= image.MaxAddr/image.PageSize || page+pages > image.MaxAddr/image.PageSize:
				return bad("address")
			case !ok4 || first >= image.MaxPages || first+pages > uint64(k.Pages):
				return bad("page of a block")
			}
			out[next] = Piece{proc<<PageBits | page, number, uint8(pages), uint8(first)}
			page += pages
			first += pages
		}
		number++
	}
	return nil
}

// maxFileName bounds the names of CRIU's image files.
const maxFileName = 255

// CheckFileName refuses names that are not those of CRIU's images: WriteFile's callers make files of them.
func CheckFileName(name string) error {
	bad := func(c rune) bool { return c == '/' || c < ' ' || c == 0x7f }
	if name == "" || len(name) > maxFileName || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%q is no name for one of CRIU's images", name)
	}
	return nil
}

// TakePieces gives the pieces of all groups, whose blocks are numbered from number on.
func (x *Index) TakePieces(out []Piece, number uint32) error {
	for i := range x.Groups {
		g := &x.Groups[i]
		if err := g.decodePieces(out[:g.Count], number, uint64(len(x.PIDs))); err != nil {
			return err
		}
		out = out[g.Count:]
		for _, k := range g.Blocks {
			if k.Kind != KindFile {
				number++
			}
		}
		g.columns = nil
	}
	return nil
}
