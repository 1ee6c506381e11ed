package image

import (
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"stasis/internal/store"
)

// discard is a target that keeps nothing, so that the Writer is measured alone.
type discard struct{}

type discardWriter struct{}

func (discard) Create(string) (store.Writer, error) { return discardWriter{}, nil }
func (discard) Commit([]byte) error                 { return nil }
func (discard) Abort() error                        { return nil }
func (discardWriter) Write(p []byte) (int, error)   { return len(p), nil }
func (discardWriter) Finish() error                 { return nil }
func (discardWriter) Abort() error                  { return nil }

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(b)
	return b
}

// stamps makes pages that no other has.
type stamps uint64

func (s *stamps) on(data []byte) []byte {
	for i := 0; i < len(data); i += PageSize {
		*s++
		binary.LittleEndian.PutUint64(data[i:], uint64(*s))
	}
	return data
}

// heapPages makes n pages as programs have them: words of which many are small, and pointers. They compress to about a third.
func heapPages(n int, seed uint64) []byte {
	r, b := rand.New(rand.NewPCG(seed, 7)), make([]byte, n*PageSize)
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

// heapParent is a process on disk, size bytes long, whose memory is that of heapPages, the same 16 MiB again and again but for the
// first word of each page, which is its number counted from 1.
func heapParent(b *testing.B, size int, codecName string) (store.Source, *Checkpoint, func(page int, to []byte)) {
	b.Helper()
	const period = 4096
	content := heapPages(period, 1)
	page := func(i int, to []byte) {
		copy(to, content[i%period*PageSize:][:PageSize])
		binary.LittleEndian.PutUint64(to, uint64(i+1))
	}
	dir := filepath.Join(b.TempDir(), "parent")
	target, err := store.CreateFolder(dir)
	if err != nil {
		b.Fatal(err)
	}
	w, err := NewWriter(target, WriterOptions{Shards: 4, Codec: newCodec(b, codecName), ID: testID})
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, MaxBlock)
	for i := 0; i < size/PageSize; i += MaxPages {
		for n := range MaxPages {
			page(i+n, block[n*PageSize:])
		}
		put(b, w, 0, 7, block, Extent{uint64(i) * PageSize, MaxPages})
	}
	finish(b, w, map[int][]Range{7: {{0, uint64(size)}}})
	src, err := store.OpenFolder(dir)
	if err != nil {
		b.Fatal(err)
	}
	c := open(b, src)
	return src, c, page
}
