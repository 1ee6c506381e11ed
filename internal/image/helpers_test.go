package image

import (
	"bytes"
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
