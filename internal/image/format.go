package image

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"

	"stasis/internal/codec"
	"stasis/internal/store"
)

// Sizes of the fixed parts, in bytes. The package comment draws them.
const (
	blockSize  = 64 // of a block's header
	extentSize = 12
	unit       = 64 // everything in a shard begins at a multiple of this
)

// shardVersion is the version of headers and footers of shards.
const shardVersion = 1

const (
	headerMagic = store.Magic + "SH"
	footerMagic = store.Magic + "SF"
	blockMagic  = 0x4b4c4253 // "SBLK"
)

var le = binary.LittleEndian

// padded rounds n up to whole units.
func padded[T int | int64](n T) T { return (n + unit - 1) &^ (unit - 1) }

// header begins a shard.
type header struct {
	shard, shards uint32
	id            [16]byte
}

func (h header) encode() []byte {
	b := make([]byte, ShardHeader)
	copy(b, headerMagic)
	le.PutUint32(b[8:], shardVersion)
	le.PutUint32(b[12:], h.shard)
	le.PutUint32(b[16:], h.shards)
	le.PutUint32(b[20:], PageSize)
	copy(b[24:], h.id[:])
	le.PutUint64(b[56:], xxh3.Hash(b[:56]))
	return b
}

func decodeHeader(b []byte) (h header, err error) {
	switch {
	case len(b) != ShardHeader:
		return h, errors.New("it is too short to be a shard")
	case string(b[:8]) != headerMagic:
		return h, errors.New("it does not begin like a shard")
	case le.Uint64(b[56:]) != xxh3.Hash(b[:56]):
		return h, errors.New("the checksum of its header does not match")
	case le.Uint32(b[8:]) != shardVersion:
		return h, fmt.Errorf("its header is of version %d", le.Uint32(b[8:]))
	case le.Uint32(b[20:]) != PageSize:
		return h, fmt.Errorf("its page size is %d", le.Uint32(b[20:]))
	}
	return header{le.Uint32(b[12:]), le.Uint32(b[16:]), [16]byte(b[24:40])}, nil
}

// footer ends a shard and says where its index is.
type footer struct {
	shard                 uint32
	indexOffset           uint64
	indexStored, indexRaw uint64 // lengths
	indexSum              uint64 // XXH3-64 of the index as stored
	id                    uint64 // short form
}

func (f footer) encode() []byte {
	b := make([]byte, ShardFooter)
	copy(b, footerMagic)
	le.PutUint32(b[8:], shardVersion)
	le.PutUint32(b[12:], f.shard)
	le.PutUint64(b[16:], f.indexOffset)
	le.PutUint64(b[24:], f.indexStored)
	le.PutUint64(b[32:], f.indexRaw)
	le.PutUint64(b[40:], f.indexSum)
	le.PutUint64(b[48:], f.id)
	le.PutUint64(b[56:], xxh3.Hash(b[:56]))
	return b
}

// decodeFooter reads the footer of a shard of that size and sees that the index fits between header and footer.
func decodeFooter(b []byte, size int64) (f footer, err error) {
	switch {
	case len(b) != ShardFooter || size < ShardHeader+ShardFooter:
		return f, errors.New("it is too short to be a shard")
	case string(b[:8]) != footerMagic:
		return f, errors.New("it does not end like a shard: it is truncated, or the end was overwritten")
	case le.Uint64(b[56:]) != xxh3.Hash(b[:56]):
		return f, errors.New("the checksum of its footer does not match")
	case le.Uint32(b[8:]) != shardVersion:
		return f, fmt.Errorf("its footer is of version %d", le.Uint32(b[8:]))
	}
	f = footer{le.Uint32(b[12:]), le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:])}
	end := uint64(size - ShardFooter)
	if f.indexOffset < ShardHeader || f.indexOffset > end || f.indexStored != end-f.indexOffset || f.indexRaw > maxIndex {
		return f, errors.New("its footer points to no possible index")
	}
	return f, nil
}

// shortID is the form of the checkpoint's id that blocks and footers carry.
func shortID(id [16]byte) uint64 { return le.Uint64(id[:8]) }

// blockKind says what a block holds. The numbers are part of the format.
type blockKind uint8

const (
	pageBlock  blockKind = 1
	fileBlock  blockKind = 2
	deltaBlock blockKind = 3 // pages as differences from others; format 2
)

// blockHead is a block's header and its extents.
type blockHead struct {
	kind    blockKind
	codec   codec.ID
	id      uint64 // short form
	owner   uint32 // pid, or number of the file
	fileOff uint64 // where in the file the piece belongs; 0 for pages
	stored  uint32
	raw     uint32
	shard   uint32
	offset  uint64
	extents []Extent // nil for files
}

// headLen is the length of a block's header with n extents and the padding.
func headLen(n int) int { return padded(blockSize + extentSize*n) }

// blockLen is the length of a whole block.
func blockLen(extents int, stored uint32) int64 {
	return int64(headLen(extents)) + padded(int64(stored))
}

// encode puts the head into b's storage and completes it with the checksum, which covers the head and, by payloadSum, the
// payload.
func (h *blockHead) encode(b []byte, payloadSum uint64) []byte {
	n := headLen(len(h.extents))
	if cap(b) < n {
		b = make([]byte, n)
	}
	b = b[:n]
	clear(b)
	le.PutUint32(b, blockMagic)
	b[4], b[5] = byte(h.kind), byte(h.codec)
	le.PutUint64(b[8:], h.id)
	le.PutUint32(b[16:], h.owner)
	le.PutUint32(b[20:], uint32(len(h.extents)))
	le.PutUint64(b[24:], h.fileOff)
	le.PutUint32(b[32:], h.stored)
	le.PutUint32(b[36:], h.raw)
	le.PutUint32(b[40:], h.shard)
	le.PutUint64(b[48:], h.offset)
	for i, e := range h.extents {
		at := blockSize + i*extentSize
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

// checkBlock finds the block at the beginning of b, which may go on after it, and checks it against its checksum. payload is in
// b and without padding.
func checkBlock(b []byte) (sum uint64, payload []byte, err error) {
	if len(b) < blockSize || le.Uint32(b) != blockMagic {
		return 0, nil, errors.New("no block begins there")
	}
	extents, stored := le.Uint32(b[20:]), le.Uint32(b[32:])
	if extents > MaxPages || stored > MaxBlock || int64(len(b)) < blockLen(int(extents), stored) {
		return 0, nil, errors.New("its lengths are impossible")
	}
	var copied [blockSize + MaxPages*extentSize]byte // b may be a read-only mapping
	head := copied[:copy(copied[:], b[:headLen(int(extents))])]
	payload = b[len(head):blockLen(int(extents), stored)]
	sum = le.Uint64(head[56:])
	if sum != blockSum(head, xxh3.Hash(payload)) {
		return sum, nil, errors.New("its checksum does not match")
	}
	return sum, payload[:stored], nil
}
