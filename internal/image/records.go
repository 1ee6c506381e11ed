package image

import "stasis/internal/codec"

// records are what a Writer remembers of what was put, from which the indexes are made, and what it knows of the parent.
type records struct {
	parent        *Tables // may be nil
	parentID      [16]byte
	parentPath    string   // where it is, seen from the new checkpoint
	parentOrigins []Origin // its ancestors, as it numbers them

	shards   []*shardRecords
	zeros    list[zeroRec]
	refs     list[refRec]
	fileRefs []fileRef
	files    []FileInfo

	lost    []uint32 // blocks of the parent that could not be read
	lostWhy error    // why the first of them could not be
	moved   moves    // what was taken over from ancestors

	windowRuns int // see window; another one in tests
}

// shardRecords are what is remembered of a shard.
type shardRecords struct {
	blocks  list[blockRec]
	extents list[packedExtent]
	bases   list[base] // of blocks of differences; the parent's
}

// note remembers a block that was written. bases are those of its pages, if it is one of differences.
func (t *shardRecords) note(h *blockHead, sum, order uint64, bases []base) {
	first, pages := uint32(0), uint32(0)
	for _, e := range h.extents {
		pages += e.Pages
	}
	if h.kind == deltaBlock {
		first = uint32(t.bases.len())
		for _, b := range bases {
			t.bases.add(b)
		}
	}
	t.blocks.add(blockRec{
		sum: sum, off: h.offset, order: order, owner: h.owner, extent: uint32(t.extents.len()), base: first,
		stored: h.stored, raw: h.raw, kind: h.kind, codec: h.codec, extents: uint8(len(h.extents)), pages: uint8(pages),
	})
	for _, e := range h.extents {
		t.extents.add(pack(e))
	}
}

// forget drops what the indexes have.
func (r *records) forget() {
	for _, t := range r.shards {
		*t = shardRecords{}
	}
	r.zeros, r.refs = list[zeroRec]{}, list[refRec]{}
}

// blockRec is what the Writer remembers of a block.
type blockRec struct {
	sum     uint64
	off     uint64
	order   uint64 // pages: see Writer.stamp. files: where in the file the piece belongs
	owner   uint32 // pid, or number of the file
	extent  uint32 // first of its extents in shard.extents
	base    uint32 // differences: first of its bases in shard.bases
	stored  uint32
	raw     uint32
	kind    blockKind
	codec   codec.ID
	extents uint8
	pages   uint8 // 0 for files
}

// claims says whether the block's extents say where its pages belong.
func (b *blockRec) claims() bool { return b.kind != fileBlock && b.order != movedOrder }

// zeroRec is a run of zero pages.
type zeroRec struct {
	order uint64
	page  uint64 // address / PageSize
	pages uint64
	pid   uint32
}

// refRec is a run of pages that were not stored, because a block has them: one of ours or of the parent.
type refRec struct {
	order uint64
	page  uint64 // address / PageSize
	pid   uint32
	at    pageAt // the first
	pages uint8
}

// pageAt is a page of a block.
type pageAt struct {
	block uint32 // number among those of the shard, or of the parent
	home  int16  // number of our shard, or inParent
	page  uint8  // in the block's data
}

const inParent = -1

// after is the page that many pages further.
func (p pageAt) after(n uint8) pageAt {
	p.page += n
	return p
}

// fileRef is a piece of a file that was not stored, because the parent has it.
type fileRef struct {
	file  uint32 // its number in the checkpoint
	piece *filePiece
}

// packedExtent is an Extent of at most MaxPages pages in one number: the page's number, and the count in the lowest byte.
type packedExtent uint64

func pack(e Extent) packedExtent           { return packedExtent(e.Addr/PageSize<<8 | uint64(e.Pages)) }
func (p packedExtent) page() uint64        { return uint64(p) >> 8 }
func (p packedExtent) pages() uint32       { return uint32(p & 0xff) }
func stamp(round int, count uint64) uint64 { return uint64(round)<<44 | count }
