package codec

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// zstdWindow is the largest distance that the encoder looks back. Blocks are not larger, so a larger window would only cost
// memory.
const zstdWindow = 256 << 10

// zstdCodec makes one frame a block, with its content size and without a checksum (blocks have their own).
type zstdCodec struct{ enc *zstd.Encoder }

var _ Codec = (*zstdCodec)(nil)

func newZstd(level int) (Codec, error) {
	speed := zstd.SpeedFastest
	if level > 0 {
		speed = zstd.EncoderLevelFromZstd(level)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithWindowSize(zstdWindow), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return nil, fmt.Errorf("cannot set up zstd level %d: %w", level, err)
	}
	return &zstdCodec{enc}, nil
}

func (*zstdCodec) ID() ID       { return Zstd }
func (*zstdCodec) Name() string { return Zstd.String() }

func (c *zstdCodec) Compress(dst, src []byte) (out []byte, ok bool, err error) {
	// Room for the worst case keeps EncodeAll from allocating in the middle of an incompressible block.
	room := space(dst, c.enc.MaxEncodedSize(len(src)))
	out = c.enc.EncodeAll(src, room[:0])
	if len(out) >= len(src) {
		return room[:0], false, nil
	}
	return out, true, nil
}

// zstdDecoder is shared: DecodeAll runs in as many goroutines at once as there are processors, others wait.
var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true),
		zstd.IgnoreChecksum(false))
})

func decompressZstd(dst, src []byte) error {
	dec, err := zstdDecoder()
	if err != nil {
		return fmt.Errorf("cannot set up zstd: %w", err)
	}
	out, err := dec.DecodeAll(src, dst[:0:len(dst)])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if len(out) != len(dst) {
		return fmt.Errorf("%w: zstd frame holds %d bytes where %d are expected", ErrCorrupt, len(out), len(dst))
	}
	return nil
}
