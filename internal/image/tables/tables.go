package tables

import (
	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// Tables say what is in a checkpoint, and where: the indexes of all its shards, put together and sorted. All methods may be called
// at once, but for those that fill it.
type Tables struct {
	format  int
	damaged func(shard int, why string) error

	PIDTable   []int
	Procs      []proc // of pids
	Extents    []ondisk.Piece
	BlockTable []Block       // of pages, by process and lowest address, then those that are only bases
	Live       int           // how many of blocks have pages
	Bases      []ondisk.Base // of the pages of blocks of differences
	ByBlock    []uint32      // positions in extents, block by block
	Firsts     []uint32      // of each block in ByBlock, and one more

	FileTable  []image.FileInfo
	PieceTable [][]FileBlock // of files, in order
}

// New makes empty tables for a checkpoint of that format. damaged makes the error for a shard whose index can't be right.
func New(format int, damaged func(shard int, why string) error) *Tables {
	return &Tables{format: format, damaged: damaged}
}

// AncestorShard names a shard of an ancestor.
type AncestorShard struct{ Origin, Shard uint16 }

// proc is what a process has in the tables of a checkpoint.
type proc struct {
	From, To int           // in Tables.Extents
	Zeros    []image.Range // sorted, not touching
}

// Block says where a block is and how to read it.
type Block struct {
	Off    int64
	Sum    uint64
	Stored uint32
	Raw    uint32
	Base   uint32 // differences: first of its bases in Tables.Bases
	Shard  uint16
	Origin uint16
	Codec  codec.ID
	Heads  uint8
	Kind   ondisk.BlockKind
	Pages  uint8 // 0 for files
}

// Len is the length of the whole block in its shard, in bytes.
func (b *Block) Len() int64 { return ondisk.BlockLen(int(b.Heads), b.Stored) }

// FileBlock is a block of one of CRIU's image files.
type FileBlock struct {
	Block
	Where int64
}

// Index is the form that the block has in an index.
func (b *Block) Index() ondisk.IndexBlock {
	return ondisk.IndexBlock{Off: b.Off, Sum: b.Sum, Stored: b.Stored, Raw: b.Raw, Kind: b.Kind, Codec: b.Codec, Heads: b.Heads, Pages: b.Pages}
}
