package image

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

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

	// plainVersion is the format of checkpoints that refer to no differences. It is what every Stasis reads.
	plainVersion = 1

	// maxAddr ends the user's part of the address space on every machine that Linux runs on with 4 KiB pages (5-level tables).
	maxAddr = 1 << 57
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

// Range is a range of addresses of one process, in bytes. Both ends are multiples of PageSize.
type Range struct {
	Start, End uint64 // End is not part of it
}

// Len is the range's length in bytes.
func (r Range) Len() uint64 { return r.End - r.Start }

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

// DamageError says that a checkpoint can't be used as it is. Every kind of damage ends in one.
type DamageError struct {
	Checkpoint string // its path or address
	Shard      string // the file that is damaged
	Offset     int64  // where, in bytes
	Why        string
	Err        error // what led to it, may be nil
}

// newDamage makes a DamageError; err, which may be nil, becomes part of the reason.
func newDamage(checkpoint, shard string, offset int64, why string, err error) *DamageError {
	if err != nil {
		why += ": " + err.Error()
	}
	return &DamageError{checkpoint, shard, offset, why, err}
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("checkpoint %s is damaged: %s at offset %d: %s: use a good copy of that file or another checkpoint (verify lists all damage)",
		e.Checkpoint, e.Shard, e.Offset, e.Why)
}

func (e *DamageError) Unwrap() error { return e.Err }

// VersionError says that a checkpoint is of a format that this Stasis can't read.
type VersionError struct {
	Checkpoint string
	Format     int    // the checkpoint's
	Stasis     string // the version that wrote it, may be empty
}

func (e *VersionError) Error() string {
	by := "a newer Stasis"
	if e.Stasis != "" {
		by = "Stasis " + e.Stasis
	}
	return fmt.Sprintf("checkpoint %s was written by %s in format %d, and this Stasis reads formats up to %d: use %s or a newer one",
		e.Checkpoint, by, e.Format, FormatVersion, by)
}

// MissingError says that pages that are to be in a checkpoint were never captured.
type MissingError struct {
	PID   int
	First Range  // the first gap
	Pages uint64 // in all gaps of this process
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%d pages of process %d were not captured, the first at %#x-%#x: dump again, and report this as a fault of Stasis",
		e.Pages, e.PID, e.First.Start, e.First.End)
}

// ShardName is the file name of a shard.
func ShardName(shard int) string { return fmt.Sprintf("img-%d", shard) }

// appendPage lengthens the last extent by a page, or begins another one.
func appendPage(to []Extent, page uint64) []Extent {
	if n := len(to); n > 0 && to[n-1].Addr/PageSize+uint64(to[n-1].Pages) == page {
		to[n-1].Pages++
		return to
	}
	return append(to, Extent{page * PageSize, 1})
}

func (r Range) check() error {
	if r.Start >= r.End || r.End > maxAddr || r.Start%PageSize != 0 || r.End%PageSize != 0 {
		return fmt.Errorf("%#x-%#x is no range of pages", r.Start, r.End)
	}
	return nil
}

func (e Extent) check() error {
	if e.Pages == 0 || e.Addr%PageSize != 0 || e.Addr >= maxAddr || uint64(e.Pages) > (maxAddr-e.Addr)/PageSize {
		return fmt.Errorf("%d pages at %#x are no possible part of an address space", e.Pages, e.Addr)
	}
	return nil
}

// coalesce returns ranges sorted, with those that overlap or touch joined. Empty ranges vanish.
func coalesce(ranges []Range) ([]Range, error) {
	sorted := slices.DeleteFunc(slices.Clone(ranges), func(r Range) bool { return r.Start == r.End })
	slices.SortFunc(sorted, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	out := sorted[:0]
	for _, r := range sorted {
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("cannot finish the checkpoint: %w", err)
		}
		if n := len(out); n > 0 && out[n-1].End >= r.Start {
			out[n-1].End = max(out[n-1].End, r.End)
		} else {
			out = append(out, r)
		}
	}
	return out, nil
}

// ErrLost says that the checkpoint would need a part of its parent that can't be read.
var ErrLost = errors.New("the parent is damaged")
