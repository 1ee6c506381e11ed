package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
)

// deflateDefault is the level of gzip and zlib where none is asked for.
const deflateDefault = 1

// deflater is what gzip.Writer and zlib.Writer have in common.
type deflater interface {
	io.WriteCloser
	Reset(io.Writer)
}

// deflateCodec makes one gzip member or zlib stream a block.
type deflateCodec struct {
	id   ID
	pool sync.Pool // deflater
}

var _ Codec = (*deflateCodec)(nil)

func newGzip(level int) *deflateCodec {
	c := &deflateCodec{id: Gzip}
	c.pool.New = func() any {
		w, err := gzip.NewWriterLevel(io.Discard, deflateLevel(level))
		return newDeflater(w, err)
	}
	return c
}

func newZlib(level int) *deflateCodec {
	c := &deflateCodec{id: Zlib}
	c.pool.New = func() any {
		w, err := zlib.NewWriterLevel(io.Discard, deflateLevel(level))
		return newDeflater(w, err)
	}
	return c
}

// newDeflater turns the constructor's error, which only a level out of range can cause, into a pool entry that is no writer.
func newDeflater(w deflater, err error) any {
	if err != nil {
		return err
	}
	return w
}

func deflateLevel(level int) int {
	if level == 0 {
		return deflateDefault
	}
	return level
}

func (c *deflateCodec) ID() ID       { return c.id }
func (c *deflateCodec) Name() string { return c.id.String() }

func (c *deflateCodec) Compress(dst, src []byte) (out []byte, ok bool, err error) {
	got := c.pool.Get()
	z, isWriter := got.(deflater)
	if !isWriter {
		return dst, false, fmt.Errorf("cannot set up %s: %w", c.Name(), got.(error))
	}
	defer c.pool.Put(z)
	room := bounded{buf: space(dst, len(src))[:0]}
	z.Reset(&room)
	_, err = z.Write(src)
	if err == nil {
		err = z.Close()
	}
	switch {
	case errors.Is(err, errNoRoom) || err == nil && len(room.buf) >= len(src):
		return room.buf[:0], false, nil
	case err != nil:
		return dst, false, fmt.Errorf("cannot compress with %s: %w", c.Name(), err)
	}
	return room.buf, true, nil
}

// errNoRoom ends the compression of a block as soon as it has outgrown its source.
var errNoRoom = errors.New("compressed form is not smaller")

// bounded collects what is written to it up to the capacity of its buffer.
type bounded struct{ buf []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > cap(b.buf)-len(b.buf) {
		return 0, errNoRoom
	}
	b.buf = append(b.buf, p...)
	return len(p), nil
}

// inflater is a reader of one of the two formats, with the source that it reads from.
type inflater struct {
	src bytes.Reader
	gz  *gzip.Reader
	zl  io.ReadCloser
}

var gzipReaders, zlibReaders = sync.Pool{New: func() any { return new(inflater) }}, sync.Pool{New: func() any { return new(inflater) }}

func decompressGzip(dst, src []byte) error {
	f := gzipReaders.Get().(*inflater)
	defer gzipReaders.Put(f)
	f.src.Reset(src)
	if f.gz == nil {
		f.gz = new(gzip.Reader)
	}
	if err := f.gz.Reset(&f.src); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	f.gz.Multistream(false)
	return fill(dst, f.gz, &f.src)
}

func decompressZlib(dst, src []byte) error {
	f := zlibReaders.Get().(*inflater)
	defer zlibReaders.Put(f)
	f.src.Reset(src)
	var err error
	if f.zl == nil {
		f.zl, err = zlib.NewReader(&f.src)
	} else {
		err = f.zl.(zlib.Resetter).Reset(&f.src, nil)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return fill(dst, f.zl, &f.src)
}

// fill reads dst from r, then wants r's end (which checks the format's own checksum) and src's end.
func fill(dst []byte, r io.Reader, src *bytes.Reader) error {
	if _, err := io.ReadFull(r, dst); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	var one [1]byte
	switch n, err := r.Read(one[:]); {
	case n != 0:
		return fmt.Errorf("%w: it holds more than the %d bytes expected", ErrCorrupt, len(dst))
	case err != io.EOF:
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if src.Len() != 0 {
		return fmt.Errorf("%w: %d bytes follow its end", ErrCorrupt, src.Len())
	}
	return nil
}
