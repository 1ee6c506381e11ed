package codec

import (
	"errors"
	"fmt"
	"sync"

	"github.com/pierrec/lz4/v4"
)

// lz4Codec makes bare LZ4 blocks: lengths and checksums are the caller's.
type lz4Codec struct {
	fast sync.Pool // *lz4.Compressor, level 0
	high sync.Pool // *lz4.CompressorHC, levels 1-9
	hc   bool
}

var _ Codec = (*lz4Codec)(nil)

func newLZ4(level int) *lz4Codec {
	c := &lz4Codec{hc: level > 0}
	c.fast.New = func() any { return new(lz4.Compressor) }
	c.high.New = func() any {
		// The library numbers its levels 1<<9 (Level1) to 1<<17 (Level9): each is the length of the chains that are searched.
		return &lz4.CompressorHC{Level: lz4.CompressionLevel(1 << (8 + max(level, 1)))}
	}
	return c
}

func (*lz4Codec) ID() ID       { return LZ4 }
func (*lz4Codec) Name() string { return LZ4.String() }

func (c *lz4Codec) Compress(dst, src []byte) (out []byte, ok bool, err error) {
	if len(src) < 2 {
		return dst, false, nil
	}
	// A destination shorter than src makes the library give up (it returns 0) as soon as the block proves incompressible.
	room := space(dst, len(src)-1)
	var n int
	if c.hc {
		z := c.high.Get().(*lz4.CompressorHC)
		n, err = z.CompressBlock(src, room)
		c.high.Put(z)
	} else {
		z := c.fast.Get().(*lz4.Compressor)
		n, err = z.CompressBlock(src, room)
		c.fast.Put(z)
	}
	// The only error there is says that room is too short, which is as good as 0: not compressible.
	if n == 0 || errors.Is(err, lz4.ErrInvalidSourceShortBuffer) {
		return dst, false, nil
	}
	if err != nil {
		return dst, false, fmt.Errorf("cannot compress with lz4: %w", err)
	}
	return room[:n], true, nil
}

func decompressLZ4(dst, src []byte) error {
	n, err := lz4.UncompressBlock(src, dst)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if n != len(dst) {
		return fmt.Errorf("%w: lz4 block holds %d bytes where %d are expected", ErrCorrupt, n, len(dst))
	}
	return nil
}
