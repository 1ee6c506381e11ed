package imagetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// ID is that of checkpoints that Begin makes.
var ID = [16]byte{0xc0, 0xff, 0xee, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}

// NewCodec is the codec of that name.
func NewCodec(tb testing.TB, name string) codec.Codec {
	tb.Helper()
	c, err := codec.New(name, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Begin starts a checkpoint in memory.
func Begin(tb testing.TB, shards int, codecName string) (*writer.Writer, *storetest.Memory) {
	tb.Helper()
	m := storetest.NewMemory()
	w, err := writer.New(m, writer.Options{Shards: shards, Codec: NewCodec(tb, codecName), ID: ID})
	if err != nil {
		tb.Fatal(err)
	}
	return w, m
}

// Put puts pages that have to be taken.
func Put(tb testing.TB, w *writer.Writer, round, pid int, data []byte, extents ...image.Extent) {
	tb.Helper()
	if err := w.PutPages(round, image.PageBlock{PID: pid, Extents: extents, Data: data}); err != nil {
		tb.Fatal(err)
	}
}

// PutFile puts one of CRIU's images that has to be taken.
func PutFile(tb testing.TB, w *writer.Writer, name string, content []byte) {
	tb.Helper()
	if err := w.PutFile(name, bytes.NewReader(content)); err != nil {
		tb.Fatal(err)
	}
}

// Manifest is one as a dump fills it in before Finish.
func Manifest() *image.Manifest { return &image.Manifest{Stasis: "1.2.3", Kind: image.KindFull} }

// Finish publishes a checkpoint.
func Finish(tb testing.TB, w *writer.Writer, present map[int][]image.Range) {
	tb.Helper()
	if err := w.Finish(present, Manifest()); err != nil {
		tb.Fatal(err)
	}
}

// Open opens a checkpoint until the end of the test.
func Open(tb testing.TB, src store.Source) *reader.Checkpoint {
	tb.Helper()
	c, err := reader.Open(src)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// Tagged makes n pages that begin with tag, tag+1 …; the rest of each is compressible and depends on the tag.
func Tagged(tag uint64, n int) []byte {
	b := make([]byte, n*image.PageSize)
	for i := range n {
		page := b[i*image.PageSize : (i+1)*image.PageSize]
		binary.LittleEndian.PutUint64(page, tag+uint64(i))
		for j := 8; j < len(page); j++ {
			page[j] = byte(j/64) ^ byte(tag+uint64(i))
		}
	}
	return b
}

// PagesOf is the range of n pages.
func PagesOf(addr uint64, n int) image.Range {
	return image.Range{Start: addr, End: addr + uint64(n)*image.PageSize}
}

// DamageIn sees that err is a DamageError about that shard, at or before that offset, and nothing else.
func DamageIn(tb testing.TB, err error, shard string, offset int, what string) {
	tb.Helper()
	var d *image.DamageError
	if !errors.As(err, &d) {
		tb.Fatalf("%s: %s at %d was not found: %v", what, shard, offset, err)
	}
	if d.Shard != shard || d.Offset > int64(offset) || d.Checkpoint == "" || d.Why == "" {
		tb.Fatalf("%s: %s at %d is reported as %v", what, shard, offset, err)
	}
}

// FileOf is the content of one of CRIU's images.
func FileOf(tb testing.TB, c *reader.Checkpoint, name string) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := c.WriteFile(name, &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// FailingReader fails after some bytes.
type FailingReader struct {
	N   int
	Err error
}

func (r *FailingReader) Read(p []byte) (int, error) {
	if r.N == 0 {
		return 0, r.Err
	}
	n := min(len(p), r.N)
	r.N -= n
	return n, nil
}

var _ io.Reader = (*FailingReader)(nil)

// SmallCheckpoint has every kind of thing in it, and no block that is superseded altogether: all bytes of it matter.
func SmallCheckpoint(tb testing.TB, shards int, codecName string, id [16]byte) *storetest.Memory {
	tb.Helper()
	m := storetest.NewMemory()
	w, err := writer.New(m, writer.Options{Shards: shards, Codec: NewCodec(tb, codecName), ID: id})
	if err != nil {
		tb.Fatal(err)
	}
	Put(tb, w, 0, 7, Tagged(1, 3), image.Extent{Addr: 0x10000, Pages: 2}, image.Extent{Addr: 0x40000, Pages: 1})
	Put(tb, w, 1, 7, Tagged(9, 1), image.Extent{Addr: 0x11000, Pages: 1})
	Put(tb, w, 0, 8, make([]byte, 2*image.PageSize), image.Extent{Addr: 0x10000, Pages: 2})
	Put(tb, w, 0, 8, Tagged(20, 1), image.Extent{Addr: 0x20000, Pages: 1})
	PutFile(tb, w, "core-7.img", []byte("CRIU knows what is in here"))
	PutFile(tb, w, "empty.img", nil)
	Finish(tb, w, map[int][]image.Range{7: {PagesOf(0x10000, 2), PagesOf(0x40000, 1)}, 8: {PagesOf(0x10000, 1), PagesOf(0x20000, 1)}})
	return m
}

// Use opens a checkpoint and reads all of it, as verify does.
func Use(src store.Source) error {
	c, err := reader.Open(src)
	if err != nil {
		return err
	}
	return errors.Join(c.Verify(context.Background(), 1, nil), c.Close())
}
