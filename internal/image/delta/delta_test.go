package delta

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// maxDelta is the most that a difference takes in these tests.
const maxTestDelta = image.PageSize / 2

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(b)
	return b
}

// scribble changes runs of bytes of a page, up to so many.
func scribble(r *rand.Rand, page []byte, runs int) []byte {
	out := bytes.Clone(page)
	for range r.IntN(runs + 1) {
		at := r.IntN(image.PageSize)
		for i := at; i < min(at+1+r.IntN(40), image.PageSize); i++ {
			out[i] = byte(r.Uint32())
		}
	}
	return out
}

// TestDiff makes blocks of random differences and reads them again.
func TestDiff(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	gaveUp := 0
	for range 60 {
		var d Builder
		var olds, news [][]byte
		for range 1 + r.IntN(image.MaxPages) {
			old := randomBytes(image.PageSize * 2)[r.IntN(image.PageSize):][:image.PageSize]
			page := scribble(r, old, r.IntN(500))
			runs, ok := Diff(nil, old, page, maxTestDelta)
			if !ok {
				gaveUp++
				continue
			}
			literals := len(d.literals)
			d.Add(uint64(len(olds)), ondisk.Base{}, runs, page)
			if took := len(d.literals) - literals; took+patchCost*len(runs) > maxTestDelta {
				t.Fatalf("a difference takes %d bytes in %d runs", took, len(runs))
			}
			olds, news = append(olds, old), append(news, page)
		}
		payload := append(bytes.Clone(d.numbers), d.literals...)
		var got Pages
		if err := got.Parse(payload, len(olds)); err != nil {
			t.Fatal(err)
		}
		for _, i := range r.Perm(len(olds)) {
			page := bytes.Clone(olds[i])
			if got.Patch(i, page); !bytes.Equal(page, news[i]) {
				t.Fatalf("page %d of %d differs", i, len(olds))
			}
		}
		for _, pages := range []int{len(olds) - 1, len(olds) + 1} {
			if err := got.Parse(payload, max(pages, 0)); err == nil && len(payload) > 0 && pages >= 0 {
				t.Errorf("%d pages were read as %d", len(olds), pages)
			}
		}
		for n := 0; n < len(payload); n += 1 + len(payload)/50 {
			if err := got.Parse(payload[:n], len(olds)); !errors.Is(err, errDelta) {
				t.Fatalf("%d of %d bytes passed", n, len(payload))
			}
		}
	}
	if gaveUp == 0 {
		t.Error("every difference was small")
	}
	if _, ok := Diff(nil, make([]byte, image.PageSize), bytes.Repeat([]byte{1}, image.PageSize), maxTestDelta); ok {
		t.Error("a page that is all different is a difference")
	}
}

func FuzzDelta(f *testing.F) {
	var d Builder
	page := append([]byte{1, 2, 3}, make([]byte, image.PageSize-3)...)
	page[image.PageSize-1] = 9
	runs, _ := Diff(nil, make([]byte, image.PageSize), page, maxTestDelta)
	d.Add(0, ondisk.Base{}, runs, page)
	d.Add(1, ondisk.Base{}, nil, page)
	f.Add(append(d.numbers, d.literals...), uint8(2))
	f.Add([]byte{1, 0, 0x80, 0x20}, uint8(1))
	f.Fuzz(func(t *testing.T, payload []byte, pages uint8) {
		var got Pages
		if err := got.Parse(payload, int(pages)); err != nil {
			return
		}
		if len(got.numbers)+len(got.Literals) != len(payload) {
			t.Fatalf("of %d bytes %d and %d were taken", len(payload), len(got.numbers), len(got.Literals))
		}
		var page [image.PageSize]byte
		for i := range int(pages) {
			got.Patch(i, page[:])
		}
	})
}
