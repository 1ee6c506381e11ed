package image

import "stasis/internal/codec"

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

// list grows without moving what is in it, so that it never needs twice its size.
type list[T any] struct{ chunks [][]T }

const chunk = 2048

func (l *list[T]) add(v T) {
	if n := len(l.chunks); n == 0 || len(l.chunks[n-1]) == chunk {
		l.chunks = append(l.chunks, make([]T, 0, chunk))
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, v)
}

func (l *list[T]) len() int {
	if len(l.chunks) == 0 {
		return 0
	}
	return (len(l.chunks)-1)*chunk + len(l.chunks[len(l.chunks)-1])
}

func (l *list[T]) at(i int) *T { return &l.chunks[i/chunk][i%chunk] }
