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

func newCodec(t testing.TB, name string) codec.Codec {
	t.Helper()
	c, err := codec.New(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// begin starts a checkpoint in memory.
func begin(t testing.TB, shards int, codecName string) (*Writer, *storetest.Memory) {
	t.Helper()
	m := storetest.NewMemory()
	w, err := NewWriter(m, WriterOptions{Shards: shards, Codec: newCodec(t, codecName), ID: testID})
	if err != nil {
		t.Fatal(err)
	}
	return w, m
}

func put(t testing.TB, w *Writer, round, pid int, data []byte, extents ...Extent) {
	t.Helper()
	if err := w.PutPages(round, PageBlock{pid, extents, data}); err != nil {
		t.Fatal(err)
	}
}

func putFile(t testing.TB, w *Writer, name string, content []byte) {
	t.Helper()
	if err := w.PutFile(name, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// testManifest is one as a dump fills it in before Finish.
func testManifest() *Manifest { return &Manifest{Stasis: "1.2.3", Kind: KindFull} }

func finish(t testing.TB, w *Writer, present map[int][]Range) {
	t.Helper()
	if err := w.Finish(present, testManifest()); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, src store.Source) *Checkpoint {
	t.Helper()
	c, err := Open(src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
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
func damageIn(t testing.TB, err error, shard string, offset int, what string) {
	t.Helper()
	var d *DamageError
	if !errors.As(err, &d) {
		t.Fatalf("%s: %s at %d was not found: %v", what, shard, offset, err)
	}
	if d.Shard != shard || d.Offset > int64(offset) || d.Checkpoint == "" || d.Why == "" {
		t.Fatalf("%s: %s at %d is reported as %v", what, shard, offset, err)
	}
}

func fileOf(t testing.TB, c *Checkpoint, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := c.WriteFile(name, &b); err != nil {
		t.Fatal(err)
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
