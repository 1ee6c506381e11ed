package ondisk

import (
	"encoding/binary"

	"stasis/internal/codec"
	"stasis/internal/image"
)

// MaxIndex bounds the length of an index before compression, in bytes. It is far above what a terabyte of memory needs.
const MaxIndex = 1 << 30

// PageBits is how many bits the number of a page has; the rest of a word numbers processes where both are sorted together.
const (
	PageBits = 57 - 12
	PageMask = 1<<PageBits - 1
	MaxProcs = 1 << (64 - PageBits)
)

// Index is the decoded index of one shard. The package comment describes it; the union of those of all shards describes the
// checkpoint.
type Index struct {
	PIDs   []int // ascending; everything else names a process by its position here
	Files  []image.FileInfo
	Zeros  []ZeroRange
	Groups []Group
}

// ZeroRange is a run of zero pages of a process.
type ZeroRange struct {
	Proc        uint32 // position in Index.PIDs
	Page, Pages uint64
}

// Group is the blocks of one shard, of this checkpoint or an ancestor, in the order of their offsets.
type Group struct {
	Origin, Shard uint32
	Blocks        []IndexBlock
	Pieces        []Piece // of all blocks, one after the other; DecodeBlocks fills it where there are differences
	Bases         []Base  // of those pages of blocks of differences that are in pieces, one after the other

	// As DecodeBlocks leaves it:

	columns []byte // the pieces as they are stored
	Count   int    // of pieces
}

// IndexBlock is a block that is wanted.
type IndexBlock struct {
	Off    int64
	Sum    uint64
	Stored uint32
	Raw    uint32
	Kind   BlockKind
	Codec  codec.ID
	Heads  uint8  // number of extents in its header, which says how long that is
	Pages  uint8  // how many it holds; 0 for files
	Pieces uint32 // how many of Group.Pieces are its own; 0 for files
	File   uint32
	Where  uint64 // in the file
}

// Len is the length of the whole block in its shard, in bytes.
func (b *IndexBlock) Len() int64 { return BlockLen(int(b.Heads), b.Stored) }

// Base is the page that a page of differences differs from. In an index its block is counted through all blocks of all indexes, in
// their order.
type Base struct {
	Block uint32 // NoBlock: there is none, because nobody needs the page
	Page  uint8
}

// NoBlock stands for "not a block of pages".
const NoBlock = ^uint32(0)

// Encode writes columns rather than records: what is alike stands together, which is what makes it compress well.
func (x *Index) Encode() []byte {
	room := 1024
	for i := range x.Groups {
		room += 20*len(x.Groups[i].Blocks) + 8*len(x.Groups[i].Pieces)
	}
	b := make([]byte, 0, room)
	u := func(v uint64) { b = binary.AppendUvarint(b, v) }
	s := func(v int64) { b = binary.AppendVarint(b, v) }
	u(uint64(len(x.PIDs)))
	last := 0
	for _, pid := range x.PIDs {
		u(uint64(pid - last))
		last = pid
	}
	u(uint64(len(x.Files)))
	for _, f := range x.Files {
		u(uint64(len(f.Name)))
		b = append(b, f.Name...)
		u(uint64(f.Size))
	}
	u(uint64(len(x.Zeros)))
	proc, page := uint32(0), uint64(0)
	for _, z := range x.Zeros {
		s(int64(z.Proc) - int64(proc))
		s(int64(z.Page - page))
		u(z.Pages)
		proc, page = z.Proc, z.Page+z.Pages
	}
	u(uint64(len(x.Groups)))
	for i := range x.Groups {
		g := &x.Groups[i]
		u(uint64(g.Origin))
		u(uint64(g.Shard))
		u(uint64(len(g.Blocks)))
		b = g.encode(b)
	}
	return b
}

func (g *Group) encode(b []byte) []byte {
	u := func(v uint64) { b = binary.AppendUvarint(b, v) }
	s := func(v int64) { b = binary.AppendVarint(b, v) }
	for _, k := range g.Blocks {
		b = append(b, byte(k.Kind)<<4|byte(k.Codec))
	}
	end := int64(0)
	for _, k := range g.Blocks {
		u(uint64(k.Off-end) / Unit)
		end = k.Off + k.Len()
	}
	for _, k := range g.Blocks {
		u(uint64(k.Stored))
	}
	for _, k := range g.Blocks {
		u(uint64(k.Raw))
	}
	for _, k := range g.Blocks {
		if k.Kind == KindFile {
			u(uint64(k.File))
			u(k.Where)
		} else {
			b = append(b, k.Heads)
			if k.Kind == KindDifferences {
				b = append(b, k.Pages)
			}
			u(uint64(k.Pieces))
		}
	}
	for _, k := range g.Blocks {
		b = le.AppendUint64(b, k.Sum)
	}
	proc := uint64(0)
	for _, p := range g.Pieces {
		s(int64(p.Page>>PageBits - proc))
		proc = p.Page >> PageBits
	}
	page := uint64(0)
	for _, p := range g.Pieces {
		at := p.Page & PageMask
		s(int64(at - page))
		page = at + uint64(p.Pages)
	}
	for _, p := range g.Pieces {
		u(uint64(p.Pages))
	}
	next := 0
	for _, k := range g.Blocks {
		first := uint8(0)
		for _, p := range g.Pieces[next : next+int(k.Pieces)] {
			s(int64(p.First) - int64(first))
			first = p.First + p.Pages
		}
		next += int(k.Pieces)
	}
	block := uint32(0)
	for _, x := range g.Bases {
		s(int64(x.Block) - int64(block))
		block = x.Block
	}
	for _, x := range g.Bases {
		b = append(b, x.Page)
	}
	return b
}

// Piece is a run of pages that are in a block.
type Piece struct {
	Page  uint64 // in an index, and until they are sorted, with the position of the process above pageBits
	Block uint32 // in an index means nothing
	Pages uint8
	First uint8 // page within the block's data
}
