package image

import (
	"fmt"

	"stasis/internal/codec"
)

const (
	// PageSize is the size of a page in bytes. The manifest records it, and a checkpoint of another page size is refused.
	PageSize = 4096
	// MaxBlock is the most that a block holds, in bytes before compression.
	MaxBlock = 256 << 10
	// MaxPages is the most pages that a block holds.
	MaxPages = MaxBlock / PageSize
	// FormatVersion is the newest format that this package reads and writes.
	FormatVersion = 2
	// MaxShards bounds the number of shards of a checkpoint.
	MaxShards = 1024

	// ShardHeader is the length of what begins a shard, in bytes; blocks follow it.
	ShardHeader = 64
	// ShardFooter is the length of what ends a shard, in bytes.
	ShardFooter = 64

	// PlainVersion is the format of checkpoints that refer to no differences. It is what every Stasis reads.
	PlainVersion = 1

	// MaxAddr ends the user's part of the address space on every machine that Linux runs on with 4 KiB pages (5-level tables).
	MaxAddr = 1 << 57
)

// Extent is a run of pages of one process.
type Extent struct {
	Addr  uint64 // of the first page
	Pages uint32
}

// PageBlock is what PutPages takes: up to MaxPages pages of one process.
type PageBlock struct {
	PID     int
	Extents []Extent
	Data    []byte // the pages of all extents, one after the other
}

// Kind says what a checkpoint knows of a page.
type Kind uint8

// What a page can be.
const (
	Absent Kind = iota // not in the checkpoint
	Zero               // there, and all its bytes are zero
	Data               // there, in a block
)

// Piece is a run of pages that a block has for a process.
type Piece struct {
	PID   int
	Addr  uint64 // of the first page
	Pages uint32
	First uint32 // number of the first page within the block's data
}

// BlockInfo describes a block of pages.
type BlockInfo struct {
	Origin int      // 0: this checkpoint; else the number of an ancestor in the manifest's origins, counted from 1
	Shard  int      // number of the shard
	Offset int64    // of the block in its shard, in bytes
	Stored int      // length of its data as stored, in bytes
	Raw    int      // length of its data as ReadBlock returns it, in bytes
	Codec  codec.ID // what Stored is compressed with
	Delta  bool     // its pages are stored as differences from others
	Pieces []Piece  // which of its pages are wanted where, by process and address. Pages superseded by later ones are in no piece
}

// FileInfo describes one of CRIU's image files.
type FileInfo struct {
	Name string
	Size int64 // bytes
}

// Run is a run of pages of a process that are kept in the same way.
type Run struct {
	Range
	Zero   bool // it is all zeros; the rest means nothing then
	Origin int  // 0: this checkpoint has it; else the number of an ancestor in the manifest's origins, counted from 1
	Delta  bool // it is stored as differences from other pages
}

// FilePiece is a piece of one of CRIU's image files.
type FilePiece struct {
	Offset, Len int64 // in the file, in bytes
	Origin      int   // 0: this checkpoint has it; else the number of an ancestor, as in Run
}

// Use is a block that a checkpoint needs: of its own shards, or of those of an ancestor. What of a shard is in no Use of any
// checkpoint that refers to it, and is not its header, index or footer, is needed by nobody.
type Use struct {
	Origin int    // 0: this checkpoint; else the number of an ancestor in the manifest's origins, counted from 1
	Shard  int    // number of the shard there
	Offset int64  // where the block begins in the shard, in bytes
	Len    int64  // of the whole block with its header and padding, in bytes
	File   bool   // it is a piece of one of CRIU's images
	Pages  uint64 // bit i: page i of the block is needed; 0 for pieces of files, which are needed as a whole
}

// ShardName is the file name of a shard.
func ShardName(shard int) string { return fmt.Sprintf("img-%d", shard) }

// AppendPage lengthens the last extent by a page, or begins another one.
func AppendPage(to []Extent, page uint64) []Extent {
	if n := len(to); n > 0 && to[n-1].Addr/PageSize+uint64(to[n-1].Pages) == page {
		to[n-1].Pages++
		return to
	}
	return append(to, Extent{page * PageSize, 1})
}

// Check sees that the extent can be part of an address space.
func (e Extent) Check() error {
	if e.Pages == 0 || e.Addr%PageSize != 0 || e.Addr >= MaxAddr || uint64(e.Pages) > (MaxAddr-e.Addr)/PageSize {
		return fmt.Errorf("%d pages at %#x are no possible part of an address space", e.Pages, e.Addr)
	}
	return nil
}
