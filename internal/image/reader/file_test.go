package reader_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
)

// Whatever part of a file is read is what was put there.
func TestFileIsReadAnywhere(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 1, image.MaxBlock - 1, image.MaxBlock, 3*image.MaxBlock + 17} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(r.Uint32N(7))
		}
		w, m := imagetest.Begin(t, 2, "lz4")
		imagetest.PutFile(t, w, "other.img", []byte("something else"))
		imagetest.PutFile(t, w, "pages-1.img", content)
		imagetest.Finish(t, w, nil)
		c := imagetest.Open(t, m)
		f, err := c.OpenFile("pages-1.img")
		if err != nil || f.Size() != int64(size) {
			t.Fatalf("%d bytes: %v", size, err)
		}
		for range 200 {
			off := r.IntN(size + 10)
			p := make([]byte, r.IntN(2*image.MaxBlock))
			n, err := f.ReadAt(p, int64(off))
			want := content[min(off, size):min(off+len(p), size)]
			if !bytes.Equal(p[:n], want) || (n < len(p)) != errors.Is(err, io.EOF) || n == len(p) && err != nil {
				t.Fatalf("%d bytes at %d of %d: %d, %v", len(p), off, size, n, err)
			}
		}
		if _, err := f.ReadAt(make([]byte, 1), -1); err == nil {
			t.Error("there is something before the beginning")
		}
		if _, err := c.OpenFile("pages-2.img"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file that is not there: %v", err)
		}
	}
}

// A damaged piece is never given, also after a good one.
func TestDamagedFileIsNotRead(t *testing.T) {
	w, m := imagetest.Begin(t, 1, "none")
	content := bytes.Repeat([]byte("good"), image.MaxBlock/2)
	imagetest.PutFile(t, w, "pages-1.img", content)
	imagetest.Finish(t, w, nil)
	text := m.Files[image.ShardName(0)]
	text[bytes.LastIndex(text, []byte("good"))] = 'f'
	f, err := imagetest.Open(t, m).OpenFile("pages-1.img")
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := f.ReadAt(p, 0); err != nil || string(p) != "good" {
		t.Errorf("the good piece: %q, %v", p, err)
	}
	var damage *image.DamageError
	for range 2 {
		if _, err := f.ReadAt(p, int64(len(content)-8)); !errors.As(err, &damage) {
			t.Errorf("the damaged piece: %v", err)
		}
	}
}
