package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"

	"stasis/internal/codec"
)

// errIndex says that an index can't be as it was written. The checksum should have found that.
var errIndex = errors.New("its index is nonsense although its checksum matches")

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
		r.err = fmt.Errorf("%w: %s", errIndex, what)
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

// decodeIndex reads what encode wrote. What it returns is within all bounds by itself; how it fits the shards and the other
// indexes is for assemble to see.
func decodeIndex(b []byte) (*index, error) {
	x, err := decodeBlocks(b)
	if err != nil {
		return nil, err
	}
	for i := range x.groups {
		g := &x.groups[i]
		if g.pieces == nil {
			g.pieces = make([]extent, g.count)
			if err := g.decodePieces(g.pieces, 0, uint64(len(x.pids))); err != nil {
				return nil, err
			}
		}
		g.columns, g.count = nil, 0
	}
	return x, nil
}

// decodeBlocks is decodeIndex without the pieces, which take nearly all of the time, where nothing behind them depends on them.
func decodeBlocks(b []byte) (*index, error) {
	r := indexReader{column: column{b: b}}
	x := new(index)
	pid := uint64(0)
	procs := r.count(1, "processes")
	if procs > maxProcs {
		r.fail("processes")
		return nil, r.err
	}
	for range procs {
		next := r.u(1<<31-1-pid, "pid")
		if next == 0 {
			r.fail("pid")
		}
		pid += next
		x.pids = append(x.pids, int(pid))
	}
	for range r.count(2, "files") {
		name := string(r.bytes(int(r.u(maxFileName, "file name")), "file name"))
		if err := checkFileName(name); r.err == nil && err != nil {
			r.fail("file name")
		}
		x.files = append(x.files, FileInfo{name, int64(r.u(math.MaxInt64, "file size"))})
	}
	x.readZeros(&r)
	for range r.count(3, "groups") {
		g := group{origin: uint32(r.u(math.MaxUint16, "origin")), shard: uint32(r.u(MaxShards-1, "shard"))}
		g.read(&r, uint64(len(x.pids)))
		if r.err != nil {
			return nil, r.err
		}
		x.groups = append(x.groups, g)
	}
	if r.left() > 0 {
		r.fail("something follows its end")
	}
	return x, r.err
}

func (x *index) readZeros(r *indexReader) {
	n := r.count(3, "zero pages")
	x.zeros = make([]zeroRange, 0, n)
	proc, page := uint64(0), uint64(0)
	for range n {
		proc = r.s(proc, uint64(len(x.pids))-1, "process of zero pages")
		page = r.s(page, maxAddr/PageSize-1, "address of zero pages")
		pages := r.u(maxAddr/PageSize-page, "number of zero pages")
		if pages == 0 || len(x.pids) == 0 {
			r.fail("number of zero pages")
		}
		x.zeros = append(x.zeros, zeroRange{uint32(proc), page, pages})
		page += pages
	}
}

// read reads the group's columns; procs is how many processes there are.
func (g *group) read(r *indexReader, procs uint64) {
	const least = 1 + 1 + 1 + 1 + 2 + 8 // bytes of each block in the columns
	g.blocks = make([]indexBlock, r.count(least, "blocks"))
	for i, k := range r.bytes(len(g.blocks), "kinds") {
		g.blocks[i].kind, g.blocks[i].codec = blockKind(k>>4), codec.ID(k&15)
	}
	gaps := make([]uint64, len(g.blocks)) // lengths are read first: an offset depends on those before it
	for i := range g.blocks {
		gaps[i] = r.u(math.MaxInt64/unit/2, "gap")
	}
	for i := range g.blocks {
		g.blocks[i].stored = uint32(r.u(MaxBlock, "stored length"))
	}
	for i := range g.blocks {
		g.blocks[i].raw = uint32(r.u(MaxBlock, "length"))
	}
	pieces, deltas := uint64(0), false
	for i := range g.blocks {
		k := &g.blocks[i]
		if k.kind == fileBlock {
			k.file = uint32(r.u(math.MaxUint32, "file"))
			k.where = r.u(math.MaxInt64-MaxBlock, "place in file")
		} else {
			k.heads = r.bytes(1, "extents")[0]
			k.pages = uint8(k.raw / PageSize)
			if k.kind == deltaBlock {
				k.pages = r.bytes(1, "pages of a block")[0]
				deltas = true
			}
			k.pieces = uint32(r.u(uint64(r.left()), "pieces"))
			pieces += uint64(k.pieces)
		}
	}
	end := int64(0)
	for i := range g.blocks {
		k := &g.blocks[i]
		k.sum = le.Uint64(r.bytes(8, "checksums"))
		if gaps[i]*unit > uint64(math.MaxInt64/2-end) {
			r.fail("offset")
			return
		}
		k.off = end + int64(gaps[i]*unit)
		end = k.off + k.len()
		if !k.possible() {
			r.fail("block")
		}
	}
	if r.err != nil || pieces > uint64(r.left()/4) {
		r.fail("pieces")
		return
	}
	g.count = int(pieces)
	from := r.at
	if !r.skip(4 * g.count) {
		r.fail("pieces")
		return
	}
	g.columns = r.b[from:r.at]
	if !deltas {
		return
	}
	g.pieces = make([]extent, g.count)
	if r.err = g.decodePieces(g.pieces, 0, procs); r.err == nil {
		g.readBases(r)
	}
}

// readBases reads what the pages of blocks of differences differ from: of each page that is in a piece, in order.
func (g *group) readBases(r *indexReader) {
	count := 0
	g.eachDelta(func(_ int, pages uint64) { count += bits.OnesCount64(pages) })
	if count > r.left()/2 {
		r.fail("bases")
		return
	}
	g.bases = make([]base, count)
	block := uint64(0)
	for i := range g.bases {
		block = r.s(block, math.MaxUint32, "block of a base")
		g.bases[i].block = uint32(block)
	}
	for i, page := range r.bytes(count, "bases") {
		g.bases[i].page = page
	}
}

// eachDelta calls f with the position of each block of differences and a bit for each of its pages that is in a piece.
func (g *group) eachDelta(f func(at int, pages uint64)) {
	next := 0
	for i := range g.blocks {
		k := &g.blocks[i]
		if k.kind == deltaBlock {
			pages := uint64(0)
			for _, p := range g.pieces[next : next+int(k.pieces)] {
				pages |= (1<<p.pages - 1) << p.first
			}
			f(i, pages)
		}
		next += int(k.pieces)
	}
}

func (b *indexBlock) possible() bool {
	ok := b.raw > 0 && b.stored > 0 && b.stored <= b.raw && b.codec.Valid() && (b.codec != codec.None || b.stored == b.raw)
	switch b.kind {
	case pageBlock:
		return ok && b.raw%PageSize == 0 && b.heads > 0 && b.heads <= MaxPages // without pieces it must be a base: see assemble
	case deltaBlock:
		return ok && b.heads > 0 && b.heads <= b.pages && b.pages <= MaxPages && b.pieces > 0
	case fileBlock:
		return ok
	}
	return false
}

// decodePieces takes the columns of the group's pieces apart. Its blocks of pages and differences are numbered from number on.
func (g *group) decodePieces(out []extent, number uint32, procs uint64) error {
	bad := func(what string) error { return fmt.Errorf("%w: %s", errIndex, what) }
	// An address depends on the number of pages before it, which stands behind all addresses; so all columns are read side by side.
	columns := [4]column{}
	for i, at := 0, 0; i < len(columns); i++ {
		columns[i] = column{g.columns, at}
		end := columns[i]
		end.skip(g.count) // read has seen that they are all there
		at = end.at
	}
	procOf, steps, lengths, places := &columns[0], &columns[1], &columns[2], &columns[3]
	proc, page, next := uint64(0), uint64(0), 0
	for i := range g.blocks {
		k := &g.blocks[i]
		if k.kind == fileBlock {
			continue
		}
		first := uint64(0)
		for n := next + int(k.pieces); next < n; next++ {
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
			case !ok2 || !ok3 || pages == 0 || pages > MaxPages || page >= maxAddr/PageSize || page+pages > maxAddr/PageSize:
				return bad("address")
			case !ok4 || first >= MaxPages || first+pages > uint64(k.pages):
				return bad("page of a block")
			}
			out[next] = extent{proc<<pageBits | page, number, uint8(pages), uint8(first)}
			page += pages
			first += pages
		}
		number++
	}
	return nil
}

// maxFileName bounds the names of CRIU's image files.
const maxFileName = 255

// checkFileName refuses names that are not those of CRIU's images: WriteFile's callers make files of them.
func checkFileName(name string) error {
	bad := func(c rune) bool { return c == '/' || c < ' ' || c == 0x7f }
	if name == "" || len(name) > maxFileName || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%q is no name for one of CRIU's images", name)
	}
	return nil
}

// takePieces gives the pieces of all groups, whose blocks are numbered from number on.
func (x *index) takePieces(out []extent, number uint32) error {
	for i := range x.groups {
		g := &x.groups[i]
		if err := g.decodePieces(out[:g.count], number, uint64(len(x.pids))); err != nil {
			return err
		}
		out = out[g.count:]
		for _, k := range g.blocks {
			if k.kind != fileBlock {
				number++
			}
		}
		g.columns = nil
	}
	return nil
}
