package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"stasis/internal/codec"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

var testID = [16]byte{0xc0, 0xff, 0xee, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}

func newCodec(tb testing.TB, name string) codec.Codec {
	tb.Helper()
	c, err := codec.New(name, 0)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// begin starts a checkpoint in memory.
func begin(tb testing.TB, shards int, codecName string) (*Writer, *storetest.Memory) {
	tb.Helper()
	m := storetest.NewMemory()
	w, err := NewWriter(m, WriterOptions{Shards: shards, Codec: newCodec(tb, codecName), ID: testID})
	if err != nil {
		tb.Fatal(err)
	}
	return w, m
}

func put(tb testing.TB, w *Writer, round, pid int, data []byte, extents ...Extent) {
	tb.Helper()
	if err := w.PutPages(round, PageBlock{pid, extents, data}); err != nil {
		tb.Fatal(err)
	}
}

func putFile(tb testing.TB, w *Writer, name string, content []byte) {
	tb.Helper()
	if err := w.PutFile(name, bytes.NewReader(content)); err != nil {
		tb.Fatal(err)
	}
}

// testManifest is one as a dump fills it in before Finish.
func testManifest() *Manifest { return &Manifest{Stasis: "1.2.3", Kind: KindFull} }

func finish(tb testing.TB, w *Writer, present map[int][]Range) {
	tb.Helper()
	if err := w.Finish(present, testManifest()); err != nil {
		tb.Fatal(err)
	}
}

func open(tb testing.TB, src store.Source) *Checkpoint {
	tb.Helper()
	c, err := Open(src)
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

// tagged makes n pages that begin with tag, tag+1 …; the rest of each is compressible and depends on the tag.
func tagged(tag uint64, n int) []byte {
	b := make([]byte, n*PageSize)
	for i := range n {
		page := b[i*PageSize : (i+1)*PageSize]
		binary.LittleEndian.PutUint64(page, tag+uint64(i))
		for j := 8; j < len(page); j++ {
			page[j] = byte(j/64) ^ byte(tag+uint64(i))
		}
	}
	return b
}

func pagesOf(addr uint64, n int) Range { return Range{addr, addr + uint64(n)*PageSize} }

// damageIn sees that err is a DamageError about that shard, at or before that offset, and nothing else.
func damageIn(tb testing.TB, err error, shard string, offset int, what string) {
	tb.Helper()
	var d *DamageError
	if !errors.As(err, &d) {
		tb.Fatalf("%s: %s at %d was not found: %v", what, shard, offset, err)
	}
	if d.Shard != shard || d.Offset > int64(offset) || d.Checkpoint == "" || d.Why == "" {
		tb.Fatalf("%s: %s at %d is reported as %v", what, shard, offset, err)
	}
}

func fileOf(tb testing.TB, c *Checkpoint, name string) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := c.WriteFile(name, &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// failingReader fails after some bytes.
type failingReader struct {
	n   int
	err error
}

func (r *failingReader) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, r.err
	}
	n := min(len(p), r.n)
	r.n -= n
	return n, nil
}

var _ io.Reader = (*failingReader)(nil)

// smallCheckpoint has every kind of thing in it, and no block that is superseded altogether: all bytes of it matter.
func smallCheckpoint(tb testing.TB, shards int, codecName string, id [16]byte) *storetest.Memory {
	tb.Helper()
	m := storetest.NewMemory()
	w, err := NewWriter(m, WriterOptions{Shards: shards, Codec: newCodec(tb, codecName), ID: id})
	if err != nil {
		tb.Fatal(err)
	}
	put(tb, w, 0, 7, tagged(1, 3), Extent{0x10000, 2}, Extent{0x40000, 1})
	put(tb, w, 1, 7, tagged(9, 1), Extent{0x11000, 1})
	put(tb, w, 0, 8, make([]byte, 2*PageSize), Extent{0x10000, 2})
	put(tb, w, 0, 8, tagged(20, 1), Extent{0x20000, 1})
	putFile(tb, w, "core-7.img", []byte("CRIU knows what is in here"))
	putFile(tb, w, "empty.img", nil)
	finish(tb, w, map[int][]Range{7: {pagesOf(0x10000, 2), pagesOf(0x40000, 1)}, 8: {pagesOf(0x10000, 1), pagesOf(0x20000, 1)}})
	return m
}

// use opens a checkpoint and reads all of it, as verify does.
func use(src store.Source) error {
	c, err := Open(src)
	if err != nil {
		return err
	}
	return errors.Join(c.Verify(context.Background(), 1, nil), c.Close())
}
