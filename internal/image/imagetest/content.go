package imagetest

import (
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// Discard is a target that keeps nothing, so that the Writer is measured alone.
type Discard struct{}

type discardWriter struct{}

// Create implements [store.Target].
func (Discard) Create(string) (store.Writer, error) { return discardWriter{}, nil }

// Commit implements [store.Target].
func (Discard) Commit([]byte) error { return nil }

// Abort implements [store.Target].
func (Discard) Abort() error { return nil }

func (discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (discardWriter) Finish() error               { return nil }
func (discardWriter) Abort() error                { return nil }

// Noise is n bytes that do not compress, always the same.
func Noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(b)
	return b
}

// Stamps makes pages that no other has.
type Stamps uint64

// On makes every page of data another one than all before, and returns data.
func (s *Stamps) On(data []byte) []byte {
	for i := 0; i < len(data); i += image.PageSize {
		*s++
		binary.LittleEndian.PutUint64(data[i:], uint64(*s))
	}
	return data
}

// HeapPages makes n pages as programs have them: words of which many are small, and pointers. They compress to about a third.
func HeapPages(n int, seed uint64) []byte {
	r, b := rand.New(rand.NewPCG(seed, 7)), make([]byte, n*image.PageSize)
	for i := 0; i < len(b); i += 8 {
		switch r.IntN(4) {
		case 0:
			binary.LittleEndian.PutUint64(b[i:], 0x7f3a_0000_0000+r.Uint64N(1<<24)*16)
		case 1:
			binary.LittleEndian.PutUint64(b[i:], r.Uint64N(1000))
		}
	}
	return b
}

// HeapParent is a process on disk, size bytes long, whose memory is that of heapPages, the same 16 MiB again and again but for the
// first word of each page, which is its number counted from 1.
func HeapParent(b *testing.B, size int, codecName string) (store.Source, *reader.Checkpoint, func(page int, to []byte)) {
	b.Helper()
	const period = 4096
	content := HeapPages(period, 1)
	page := func(i int, to []byte) {
		copy(to, content[i%period*image.PageSize:][:image.PageSize])
		binary.LittleEndian.PutUint64(to, uint64(i+1))
	}
	dir := filepath.Join(b.TempDir(), "parent")
	target, err := store.CreateFolder(dir)
	if err != nil {
		b.Fatal(err)
	}
	w, err := writer.New(target, writer.Options{Shards: 4, Codec: NewCodec(b, codecName), ID: ID})
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, image.MaxBlock)
	for i := 0; i < size/image.PageSize; i += image.MaxPages {
		for n := range image.MaxPages {
			page(i+n, block[n*image.PageSize:])
		}
		Put(b, w, 0, 7, block, image.Extent{Addr: uint64(i) * image.PageSize, Pages: image.MaxPages})
	}
	Finish(b, w, map[int][]image.Range{7: {{Start: 0, End: uint64(size)}}})
	src, err := store.OpenFolder(dir)
	if err != nil {
		b.Fatal(err)
	}
	c := Open(b, src)
	return src, c, page
}
