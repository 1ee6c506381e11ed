package image

import "stasis/internal/codec"

// Tables say what is in a checkpoint, and where: the indexes of all its shards, put together and sorted. All methods may be called
// at once, but for those that fill it.
type Tables struct {
	format  int
	damaged func(shard int, why string) error

	pids    []int
	procs   []proc // of pids
	extents []extent
	blocks  []block  // of pages, by process and lowest address, then those that are only bases
	live    int      // how many of blocks have pages
	bases   []base   // of the pages of blocks of differences
	byBlock []uint32 // positions in extents, block by block
	firsts  []uint32 // of each block in byBlock, and one more

	files      []FileInfo
	filePieces [][]filePiece // of files, in order
}

// newTables makes empty tables for a checkpoint of that format. damaged makes the error for a shard whose index can't be right.
func newTables(format int, damaged func(shard int, why string) error) *Tables {
	return &Tables{format: format, damaged: damaged}
}

// ancestorShard names a shard of an ancestor.
type ancestorShard struct{ origin, shard uint16 }

// proc is what a process has in the tables of a Checkpoint.
type proc struct {
	from, to int     // in extents
	zeros    []Range // sorted, not touching
}

// block says where a block is and how to read it.
type block struct {
	off    int64
	sum    uint64
	stored uint32
	raw    uint32
	base   uint32 // differences: first of its bases in Checkpoint.bases
	shard  uint16
	origin uint16
	codec  codec.ID
	heads  uint8
	kind   blockKind
	pages  uint8 // 0 for files
}

func (b *block) len() int64 { return blockLen(int(b.heads), b.stored) }

// filePiece is a block of one of CRIU's image files.
type filePiece struct {
	block
	where int64
}

// index is the form that the block has in an index.
func (b *block) index() indexBlock {
	return indexBlock{off: b.off, sum: b.sum, stored: b.stored, raw: b.raw, kind: b.kind, codec: b.codec, heads: b.heads, pages: b.pages}
}
