package ondisk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/store"
)

// Sizes of the fixed parts, in bytes. The package comment draws them.
const (
	BlockSize  = 64 // of a block's header
	ExtentSize = 12
	Unit       = 64 // everything in a shard begins at a multiple of this
)

// shardVersion is the version of headers and footers of shards.
const shardVersion = 1

const (
	headerMagic = store.Magic + "SH"
	footerMagic = store.Magic + "SF"
	blockMagic  = 0x4b4c4253 // "SBLK"
)

var le = binary.LittleEndian

// Padded rounds n up to whole units.
func Padded[T int | int64](n T) T { return (n + Unit - 1) &^ (Unit - 1) }

// Header begins a shard.
type Header struct {
	Shard, Shards uint32
	ID            [16]byte
}

// Encode makes the bytes of the header.
func (h Header) Encode() []byte {
	b := make([]byte, image.ShardHeader)
	copy(b, headerMagic)
	le.PutUint32(b[8:], shardVersion)
	le.PutUint32(b[12:], h.Shard)
	le.PutUint32(b[16:], h.Shards)
	le.PutUint32(b[20:], image.PageSize)
	copy(b[24:], h.ID[:])
	le.PutUint64(b[56:], xxh3.Hash(b[:56]))
	return b
}

// DecodeHeader reads a header and checks it by itself.
func DecodeHeader(b []byte) (h Header, err error) {
	switch {
	case len(b) != image.ShardHeader:
		return h, errors.New("it is too short to be a shard")
	case string(b[:8]) != headerMagic:
		return h, errors.New("it does not begin like a shard")
	case le.Uint64(b[56:]) != xxh3.Hash(b[:56]):
		return h, errors.New("the checksum of its header does not match")
	case le.Uint32(b[8:]) != shardVersion:
		return h, fmt.Errorf("its header is of version %d", le.Uint32(b[8:]))
	case le.Uint32(b[20:]) != image.PageSize:
		return h, fmt.Errorf("its page size is %d", le.Uint32(b[20:]))
	}
	return Header{le.Uint32(b[12:]), le.Uint32(b[16:]), [16]byte(b[24:40])}, nil
}

// Footer ends a shard and says where its index is.
type Footer struct {
	Shard                 uint32
	IndexOffset           uint64
	IndexStored, IndexRaw uint64 // lengths
	IndexSum              uint64 // XXH3-64 of the index as stored
	ID                    uint64 // short form
}

// Encode makes the bytes of the footer.
func (f Footer) Encode() []byte {
	b := make([]byte, image.ShardFooter)
	copy(b, footerMagic)
	le.PutUint32(b[8:], shardVersion)
	le.PutUint32(b[12:], f.Shard)
	le.PutUint64(b[16:], f.IndexOffset)
	le.PutUint64(b[24:], f.IndexStored)
	le.PutUint64(b[32:], f.IndexRaw)
	le.PutUint64(b[40:], f.IndexSum)
	le.PutUint64(b[48:], f.ID)
	le.PutUint64(b[56:], xxh3.Hash(b[:56]))
	return b
}

// DecodeFooter reads the footer of a shard of that size and sees that the index fits between header and footer.
func DecodeFooter(b []byte, size int64) (f Footer, err error) {
	switch {
	case len(b) != image.ShardFooter || size < image.ShardHeader+image.ShardFooter:
		return f, errors.New("it is too short to be a shard")
	case string(b[:8]) != footerMagic:
		return f, errors.New("it does not end like a shard: it is truncated, or the end was overwritten")
	case le.Uint64(b[56:]) != xxh3.Hash(b[:56]):
		return f, errors.New("the checksum of its footer does not match")
	case le.Uint32(b[8:]) != shardVersion:
		return f, fmt.Errorf("its footer is of version %d", le.Uint32(b[8:]))
	}
	f = Footer{le.Uint32(b[12:]), le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:])}
	end := uint64(size - image.ShardFooter)
	if f.IndexOffset < image.ShardHeader || f.IndexOffset > end || f.IndexStored != end-f.IndexOffset || f.IndexRaw > MaxIndex {
		return f, errors.New("its footer points to no possible index")
	}
	return f, nil
}

// ShortID is the form of the checkpoint's id that blocks and footers carry.
func ShortID(id [16]byte) uint64 { return le.Uint64(id[:8]) }

// BlockKind says what a block holds. The numbers are part of the format.
type BlockKind uint8

// The kinds of blocks.
const (
	KindPages       BlockKind = 1
	KindFile        BlockKind = 2
	KindDifferences BlockKind = 3 // pages as differences from others; format 2
)

// BlockHead is a block's header and its extents.
type BlockHead struct {
	Kind    BlockKind
	Codec   codec.ID
	ID      uint64 // short form
	Owner   uint32 // pid, or number of the file
	FileOff uint64 // where in the file the piece belongs; 0 for pages
	Stored  uint32
	Raw     uint32
	Shard   uint32
	Offset  uint64
	Extents []image.Extent // nil for files
}

// HeadLen is the length of a block's header with n extents and the padding.
func HeadLen(n int) int { return Padded(BlockSize + ExtentSize*n) }

// BlockLen is the length of a whole block.
func BlockLen(extents int, stored uint32) int64 {
	return int64(HeadLen(extents)) + Padded(int64(stored))
}

// Encode puts the head into b's storage and completes it with the checksum, which covers the head and, by payloadSum, the
// payload.
func (h *BlockHead) Encode(b []byte, payloadSum uint64) []byte {
	n := HeadLen(len(h.Extents))
	if cap(b) < n {
		b = make([]byte, n)
	}
	b = b[:n]
	clear(b)
	le.PutUint32(b, blockMagic)
	b[4], b[5] = byte(h.Kind), byte(h.Codec)
	le.PutUint64(b[8:], h.ID)
	le.PutUint32(b[16:], h.Owner)
	le.PutUint32(b[20:], uint32(len(h.Extents)))
	le.PutUint64(b[24:], h.FileOff)
	le.PutUint32(b[32:], h.Stored)
	le.PutUint32(b[36:], h.Raw)
	le.PutUint32(b[40:], h.Shard)
	le.PutUint64(b[48:], h.Offset)
	for i, e := range h.Extents {
		at := BlockSize + i*ExtentSize
		le.PutUint64(b[at:], e.Addr)
		le.PutUint32(b[at+8:], e.Pages)
	}
	le.PutUint64(b[56:], blockSum(b, payloadSum))
	return b
}

// blockSum is the checksum of a block: of its header up to the checksum, the XXH3-64 of the payload with its padding, and the
// extents with theirs. The payload goes in by its own checksum, so that it can be computed before the block's place is known.
func blockSum(head []byte, payloadSum uint64) uint64 {
	kept := le.Uint64(head[56:])
	le.PutUint64(head[56:], payloadSum)
	sum := xxh3.Hash(head)
	le.PutUint64(head[56:], kept)
	return sum
}

// CheckBlock finds the block at the beginning of b, which may go on after it, and checks it against its checksum. payload is in
// b and without padding.
func CheckBlock(b []byte) (sum uint64, payload []byte, err error) {
	if len(b) < BlockSize || le.Uint32(b) != blockMagic {
		return 0, nil, errors.New("no block begins there")
	}
	extents, stored := le.Uint32(b[20:]), le.Uint32(b[32:])
	if extents > image.MaxPages || stored > image.MaxBlock || int64(len(b)) < BlockLen(int(extents), stored) {
		return 0, nil, errors.New("its lengths are impossible")
	}
	var copied [BlockSize + image.MaxPages*ExtentSize]byte // b may be a read-only mapping
	head := copied[:copy(copied[:], b[:HeadLen(int(extents))])]
	payload = b[len(head):BlockLen(int(extents), stored)]
	sum = le.Uint64(head[56:])
	if sum != blockSum(head, xxh3.Hash(payload)) {
		return sum, nil, errors.New("its checksum does not match")
	}
	return sum, payload[:stored], nil
}
