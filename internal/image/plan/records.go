package plan

import (
	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/tables"
)

// Records are what a Writer remembers of what was put, from which the indexes are made, and what it knows of the parent.
type Records struct {
	Parent        *tables.Tables // may be nil
	ParentID      [16]byte
	ParentPath    string         // where it is, seen from the new checkpoint
	ParentOrigins []image.Origin // its ancestors, as it numbers them

	Shards   []*ShardRecords
	Zeros    list[ZeroRec]
	Refs     list[RefRec]
	FileRefs []FileRef
	Files    []image.FileInfo

	Lost    []uint32 // blocks of the parent that could not be read
	LostWhy error    // why the first of them could not be
	Moved   Moves    // what was taken over from ancestors

	WindowRuns int // see window; another one in tests
}

// ShardRecords are what is remembered of a shard.
type ShardRecords struct {
	Blocks  list[blockRec]
	extents list[packedExtent]
	bases   list[ondisk.Base] // of blocks of differences; the parent's
}

// Note remembers a block that was written. bases are those of its pages, if it is one of differences.
func (t *ShardRecords) Note(h *ondisk.BlockHead, sum, order uint64, bases []ondisk.Base) {
	first, pages := uint32(0), uint32(0)
	for _, e := range h.Extents {
		pages += e.Pages
	}
	if h.Kind == ondisk.KindDifferences {
		first = uint32(t.bases.Len())
		for _, b := range bases {
			t.bases.Add(b)
		}
	}
	t.Blocks.Add(blockRec{
		sum: sum, off: h.Offset, order: order, owner: h.Owner, extent: uint32(t.extents.Len()), base: first,
		stored: h.Stored, raw: h.Raw, kind: h.Kind, codec: h.Codec, extents: uint8(len(h.Extents)), pages: uint8(pages),
	})
	for _, e := range h.Extents {
		t.extents.Add(pack(e))
	}
}

// Forget drops what the indexes have.
func (r *Records) Forget() {
	for _, t := range r.Shards {
		*t = ShardRecords{}
	}
	r.Zeros, r.Refs = list[ZeroRec]{}, list[RefRec]{}
}

// blockRec is what the Writer remembers of a block.
type blockRec struct {
	sum     uint64
	off     uint64
	order   uint64 // pages: see Stamp. files: where in the file the piece belongs
	owner   uint32 // pid, or number of the file
	extent  uint32 // first of its extents in ShardRecords.extents
	base    uint32 // differences: first of its bases in ShardRecords.bases
	stored  uint32
	raw     uint32
	kind    ondisk.BlockKind
	codec   codec.ID
	extents uint8
	pages   uint8 // 0 for files
}

// claims says whether the block's extents say where its pages belong.
func (b *blockRec) claims() bool { return b.kind != ondisk.KindFile && b.order != MovedOrder }

// ZeroRec is a run of zero pages.
type ZeroRec struct {
	Order uint64
	Page  uint64 // address / PageSize
	Pages uint64
	PID   uint32
}

// RefRec is a run of pages that were not stored, because a block has them: one of ours or of the parent.
type RefRec struct {
	Order uint64
	Page  uint64 // address / PageSize
	PID   uint32
	At    PageAt // the first
	Pages uint8
}

// PageAt is a page of a block.
type PageAt struct {
	Block uint32 // number among those of the shard, or of the parent
	Home  int16  // number of our shard, or InParent
	Page  uint8  // in the block's data
}

// InParent is the home of pages that the parent has.
const InParent = -1

// After is the page that many pages further.
func (p PageAt) After(n uint8) PageAt {
	p.Page += n
	return p
}

// FileRef is a piece of a file that was not stored, because the parent has it.
type FileRef struct {
	File  uint32 // its number in the checkpoint
	Piece *tables.FileBlock
}

// packedExtent is an Extent of at most MaxPages pages in one number: the page's number, and the count in the lowest byte.
type packedExtent uint64

func pack(e image.Extent) packedExtent {
	return packedExtent(e.Addr/image.PageSize<<8 | uint64(e.Pages))
}

func (p packedExtent) page() uint64  { return uint64(p) >> 8 }
func (p packedExtent) pages() uint32 { return uint32(p & 0xff) }

// Stamp is the order of what was put in a round, as the count-th of all.
func Stamp(round int, count uint64) uint64 { return uint64(round)<<44 | count }
