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
	b   []byte
	err error
}

func (r *indexReader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", errIndex, what)
	}
	r.b = nil
}

// u reads a number of at most limit.
func (r *indexReader) u(limit uint64, what string) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// s reads a difference and adds it to v, which must come out as at most limit.
func (r *indexReader) s(v, limit uint64, what string) uint64 {
	d, n := binary.Varint(r.b)
	v += uint64(d) // wraps where the sum is negative, and is beyond any limit then
	if n <= 0 || v > limit {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads how many things follow, each of which takes at least size bytes.
func (r *indexReader) count(size int, what string) int {
	return int(r.u(uint64(len(r.b)/size), what))
}

func (r *indexReader) bytes(n int, what string) []byte {
	if n > len(r.b) {
		r.fail(what)
		return make([]byte, n)
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

// decodeIndex reads what encode wrote. What it returns is within all bounds by itself; how it fits the shards and the other
// indexes is for assemble to see.
func decodeIndex(b []byte) (*index, error) {
	r := indexReader{b: b}
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
	if len(r.b) > 0 {
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
	pieces := uint64(0)
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
			}
			k.pieces = uint32(r.u(uint64(len(r.b)), "pieces"))
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
	if r.err != nil || pieces > uint64(len(r.b)/4) {
		r.fail("pieces")
		return
	}
	g.readPieces(r, int(pieces), procs)
	if r.err == nil {
		g.readBases(r)
	}
}

// readBases reads what the pages of blocks of differences differ from: of each page that is in a piece, in order.
func (g *group) readBases(r *indexReader) {
	count := 0
	g.eachDelta(func(_ int, pages uint64) { count += bits.OnesCount64(pages) })
	if count > len(r.b)/2 {
		r.fail("bases")
		return
	}
	g.bases = make([]indexBase, count)
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

func (g *group) readPieces(r *indexReader, pieces int, procs uint64) {
	g.pieces = make([]indexPiece, pieces)
	proc := uint64(0)
	for i := range g.pieces {
		proc = r.s(proc, procs-1, "process of a piece")
		g.pieces[i].proc = uint32(proc)
	}
	if procs == 0 && pieces > 0 {
		r.fail("process of a piece")
	}
	// An address depends on the number of pages before it, which stands behind all addresses.
	steps := make([]int64, pieces)
	for i := range steps {
		var n int
		if steps[i], n = binary.Varint(r.b); n <= 0 {
			r.fail("address")
			return
		}
		r.b = r.b[n:]
	}
	page := uint64(0)
	for i := range g.pieces {
		p := &g.pieces[i]
		p.pages = uint32(r.u(MaxPages, "pages"))
		p.page = page + uint64(steps[i])
		page = p.page + uint64(p.pages)
		if p.pages == 0 || p.page >= maxAddr/PageSize || page > maxAddr/PageSize {
			r.fail("address")
			return
		}
	}
	next := 0
	for _, k := range g.blocks {
		first := uint64(0)
		for i := next; i < next+int(k.pieces); i++ {
			p := &g.pieces[i]
			first = r.s(first, MaxPages-1, "page of a block")
			p.first = uint32(first)
			first += uint64(p.pages)
			if first > uint64(k.pages) {
				r.fail("page of a block")
				return
			}
		}
		next += int(k.pieces)
	}
}

// checkFileName refuses names that are not those of CRIU's images: WriteFile's callers make files of them.
func checkFileName(name string) error {
	bad := func(c rune) bool { return c == '/' || c < ' ' || c == 0x7f }
	if name == "" || len(name) > maxFileName || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%q is no name for one of CRIU's images", name)
	}
	return nil
}
