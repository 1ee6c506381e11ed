package image

import (
	"encoding/binary"

	"stasis/internal/codec"
)

// maxIndex bounds the length of an index before compression, in bytes. It is far above what a terabyte of memory needs.
const maxIndex = 1 << 30

// pageBits is how many bits the number of a page has; the rest of a word numbers processes where both are sorted together.
const (
	pageBits = 57 - 12
	pageMask = 1<<pageBits - 1
	maxProcs = 1 << (64 - pageBits)
)

// index is the decoded index of one shard. The package comment describes it; the union of those of all shards describes the
// checkpoint.
type index struct {
	pids   []int // ascending; everything else names a process by its position here
	files  []FileInfo
	zeros  []zeroRange
	groups []group
}

// zeroRange is a run of zero pages of a process.
type zeroRange struct {
	proc        uint32 // position in index.pids
	page, pages uint64
}

// group is the blocks of one shard, of this checkpoint or an ancestor, in the order of their offsets.
type group struct {
	origin, shard uint32
	blocks        []indexBlock
	pieces        []extent // of all blocks, one after the other; decodeBlocks fills it where there are differences
	bases         []base   // of those pages of blocks of differences that are in pieces, one after the other

	// As decodeBlocks leaves it:

	columns []byte // the pieces as they are stored
	count   int    // of pieces
}

// indexBlock is a block that is wanted.
type indexBlock struct {
	off    int64
	sum    uint64
	stored uint32
	raw    uint32
	kind   blockKind
	codec  codec.ID
	heads  uint8  // number of extents in its header, which says how long that is
	pages  uint8  // how many it holds; 0 for files
	pieces uint32 // how many of group.pieces are its own; 0 for files
	file   uint32
	where  uint64 // in the file
}

func (b *indexBlock) len() int64 { return blockLen(int(b.heads), b.stored) }

// base is the page that a page of differences differs from. In an index its block is counted through all blocks of all indexes, in
// their order.
type base struct {
	block uint32 // noBlock: there is none, because nobody needs the page
	page  uint8
}

// noBlock stands for "not a block of pages".
const noBlock = ^uint32(0)

// encode writes columns rather than records: what is alike stands together, which is what makes it compress well.
func (x *index) encode() []byte {
	room := 1024
	for i := range x.groups {
		room += 20*len(x.groups[i].blocks) + 8*len(x.groups[i].pieces)
	}
	b := make([]byte, 0, room)
	u := func(v uint64) { b = binary.AppendUvarint(b, v) }
	s := func(v int64) { b = binary.AppendVarint(b, v) }
	u(uint64(len(x.pids)))
	last := 0
	for _, pid := range x.pids {
		u(uint64(pid - last))
		last = pid
	}
	u(uint64(len(x.files)))
	for _, f := range x.files {
		u(uint64(len(f.Name)))
		b = append(b, f.Name...)
		u(uint64(f.Size))
	}
	u(uint64(len(x.zeros)))
	proc, page := uint32(0), uint64(0)
	for _, z := range x.zeros {
		s(int64(z.proc) - int64(proc))
		s(int64(z.page - page))
		u(z.pages)
		proc, page = z.proc, z.page+z.pages
	}
	u(uint64(len(x.groups)))
	for i := range x.groups {
		g := &x.groups[i]
		u(uint64(g.origin))
		u(uint64(g.shard))
		u(uint64(len(g.blocks)))
		b = g.encode(b)
	}
	return b
}

func (g *group) encode(b []byte) []byte {
	u := func(v uint64) { b = binary.AppendUvarint(b, v) }
	s := func(v int64) { b = binary.AppendVarint(b, v) }
	for _, k := range g.blocks {
		b = append(b, byte(k.kind)<<4|byte(k.codec))
	}
	end := int64(0)
	for _, k := range g.blocks {
		u(uint64(k.off-end) / unit)
		end = k.off + k.len()
	}
	for _, k := range g.blocks {
		u(uint64(k.stored))
	}
	for _, k := range g.blocks {
		u(uint64(k.raw))
	}
	for _, k := range g.blocks {
		if k.kind == fileBlock {
			u(uint64(k.file))
			u(k.where)
		} else {
			b = append(b, k.heads)
			if k.kind == deltaBlock {
				b = append(b, k.pages)
			}
			u(uint64(k.pieces))
		}
	}
	for _, k := range g.blocks {
		b = le.AppendUint64(b, k.sum)
	}
	proc := uint64(0)
	for _, p := range g.pieces {
		s(int64(p.page>>pageBits - proc))
		proc = p.page >> pageBits
	}
	page := uint64(0)
	for _, p := range g.pieces {
		at := p.page & pageMask
		s(int64(at - page))
		page = at + uint64(p.pages)
	}
	for _, p := range g.pieces {
		u(uint64(p.pages))
	}
	next := 0
	for _, k := range g.blocks {
		first := uint8(0)
		for _, p := range g.pieces[next : next+int(k.pieces)] {
			s(int64(p.first) - int64(first))
			first = p.first + p.pages
		}
		next += int(k.pieces)
	}
	block := uint32(0)
	for _, x := range g.bases {
		s(int64(x.block) - int64(block))
		block = x.block
	}
	for _, x := range g.bases {
		b = append(b, x.page)
	}
	return b
}

// extent is a run of pages that are in a block.
type extent struct {
	page  uint64 // in an index, and until they are sorted, with the position of the process above pageBits
	block uint32 // in an index means nothing
	pages uint8
	first uint8 // page within the block's data
}
