// Package codec compresses and decompresses the blocks of a checkpoint.
//
// A block is at most a few hundred KiB and is compressed alone, so that blocks can be read in any order by any number of
// readers. The codec of each block is written in its header as an [ID]; a block that would not shrink is stored with [None]
// whatever the checkpoint's codec is.
//
// Words: raw is what was given to Compress, stored is what Compress made of it. The lengths of both are kept by the caller,
// and so is the checksum: a codec only promises that a stored block that is whole comes back as it was.
//
// Everything here may be used from several goroutines at once. Encoders and decoders keep tables of up to a megabyte each;
// they are pooled, and there are never more of them than goroutines at work.
package codec

import (
	"errors"
	"fmt"
	"strings"
)

// ID says in a stored block how it was compressed. The numbers are part of the checkpoint format and are never given to
// another codec.
type ID uint8

// The codecs that a block can be stored with.
const (
	None ID = 0 // as it is
	LZ4  ID = 1 // one LZ4 block, without a frame
	Zstd ID = 2 // one Zstandard frame
	Gzip ID = 3 // one gzip member (RFC 1952)
	Zlib ID = 4 // one zlib stream (RFC 1950)
)

var names = [...]string{None: "none", LZ4: "lz4", Zstd: "zstd", Gzip: "gzip", Zlib: "zlib"}

// Names lists the codecs by the names that New takes.
func Names() []string { return names[:] }

// Valid says whether this version of Stasis can decompress id.
func (id ID) Valid() bool { return int(id) < len(names) }

// String is the codec's name, or "codec N" for one that this version does not know.
func (id ID) String() string {
	if !id.Valid() {
		return fmt.Sprintf("codec %d", uint8(id))
	}
	return names[id]
}

// ErrCorrupt is wrapped by every error of Decompress that says that the stored bytes can't be right.
var ErrCorrupt = errors.New("compressed data is damaged")

// Codec compresses blocks. Its methods may be called from several goroutines at once.
type Codec interface {
	ID() ID
	Name() string
	// Compress returns the compressed form of src, in dst's storage where that is large enough. ok is false, and out is dst,
	// where the compressed form would not be smaller than src.
	Compress(dst, src []byte) (out []byte, ok bool, err error)
}

// New makes the codec of that name. Level 0 is the codec's default, which favours speed; higher levels are smaller and
// slower: lz4 1-9, zstd 1-22, gzip and zlib 1-9. An unknown name or level is an error that names the valid ones.
func New(name string, level int) (Codec, error) {
	if err := checkLevel(name, level); err != nil {
		return nil, err
	}
	switch name {
	case "lz4":
		return newLZ4(level), nil
	case "zstd":
		return newZstd(level)
	case "gzip":
		return newGzip(level), nil
	case "zlib":
		return newZlib(level), nil
	}
	return none{}, nil
}

// highest is the highest level of each codec.
var highest = map[string]int{"none": 0, "lz4": 9, "zstd": 22, "gzip": 9, "zlib": 9}

func checkLevel(name string, level int) error {
	top, known := highest[name]
	switch {
	case !known:
		return fmt.Errorf("unknown compression %q: choose one of %s", name, strings.Join(names[:], ", "))
	case level >= 0 && level <= top:
		return nil
	case top == 0:
		return fmt.Errorf("compression %s has no levels, but level %d was asked for: leave the level out", name, level)
	}
	return fmt.Errorf("compression %s has no level %d: choose 1 (fast) to %d (small), or 0 for the default", name, level, top)
}

// Decompress fills dst with what src holds. dst must have the length that was compressed; anything else that src
// decompresses to is an error that wraps ErrCorrupt. dst and src must not overlap.
func Decompress(id ID, dst, src []byte) error {
	switch id {
	case None:
		if len(src) != len(dst) {
			return fmt.Errorf("%w: %d bytes are stored where %d are expected", ErrCorrupt, len(src), len(dst))
		}
		copy(dst, src)
		return nil
	case LZ4:
		return decompressLZ4(dst, src)
	case Zstd:
		return decompressZstd(dst, src)
	case Gzip:
		return decompressGzip(dst, src)
	case Zlib:
		return decompressZlib(dst, src)
	}
	return fmt.Errorf("%w: %v is not known to this version of Stasis", ErrCorrupt, id)
}

// none stores blocks as they are.
type none struct{}

var _ Codec = none{}

func (none) ID() ID                                       { return None }
func (none) Name() string                                 { return None.String() }
func (none) Compress(dst, _ []byte) ([]byte, bool, error) { return dst, false, nil }

// space returns n bytes in dst's storage, or in new storage where that is too small.
func space(dst []byte, n int) []byte {
	if cap(dst) >= n {
		return dst[:n]
	}
	return make([]byte, n)
}
