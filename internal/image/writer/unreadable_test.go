package writer_test

import (
	"bytes"
	"errors"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store/storetest"
)

// TestDamagedParentIsNotCompared damages a block of the parent after it was opened, or of what it builds on. What is put is stored whole,
// what lies beside it is listed, and with that put too the checkpoint needs nothing of the block: it is right with the damage still
// there. Without, there is none.
func TestDamagedParentIsNotCompared(t *testing.T) {
	const pages, changed = 4 * image.MaxPages, 64 + 4*image.MaxPages - 1
	for _, test := range []struct {
		name   string
		origin int
		cut    bool
	}{{"base flipped", 1, false}, {"base cut off", 1, true}, {"differences flipped", 0, false}} {
		t.Run(test.name, func(t *testing.T) {
			c := imagetest.Counters(t, pages, 2, writer.Options{})
			parent := c.Open(t, 1)
			var use image.Use
			for _, u := range parent.Uses() {
				if !u.File && u.Origin == test.origin {
					use = u // the last, in which the last page is
				}
			}
			files := c[1-test.origin].Files
			if files["img-0"][use.Offset+use.Len/2] ^= 1; test.cut {
				files["img-0"] = files["img-0"][:use.Offset+use.Len/2]
			}
			want := c[1].Content.Clone()
			page := bytes.Clone(want[7][changed])
			page[9]++
			want.Set(7, changed, page)
			for _, lenient := range []bool{false, true} {
				w, m := onParent(t, parent)
				imagetest.Put(t, w, 0, 7, page, image.Extent{Addr: changed * image.PageSize, Pages: 1})
				blocks, why := w.Unread()
				lost, found := w.Lost(7, 0)
				if blocks == 0 || why == nil || found == 0 || len(lost) == 0 || lost[len(lost)-1].End != (changed+1)*image.PageSize {
					t.Fatalf("%d blocks are not read (%v), %d found, lost are %v", blocks, why, found, lost)
				}
				if more, same := w.Lost(7, found); len(more) > 0 || same != found {
					t.Errorf("%v is lost twice", more)
				}
				manifest := imagetest.Manifest()
				if lenient {
					manifest.Kind = image.KindPreDump
				}
				err := w.Finish(want.Present(), manifest)
				if !lenient {
					if !errors.Is(err, image.ErrLost) || !errors.As(err, new(*image.DamageError)) {
						t.Errorf("nobody put what lies beside: %v", err)
					}
					continue
				}
				// A pre-dump just lacks it.
				if err != nil {
					t.Fatal(err)
				}
				has := append(c[:2:2], imagetest.Link{Memory: m, ID: [16]byte{9}, Content: want, Kind: image.KindPreDump}).Open(t, 2).Ranges(7)
				if _, there := overlap(has, lost[0].Start); there {
					t.Errorf("it has %v, and %v is lost", has, lost)
				}
			}
			w, m := onParent(t, parent)
			imagetest.Put(t, w, 0, 7, page, image.Extent{Addr: changed * image.PageSize, Pages: 1})
			lost, _ := w.Lost(7, 0)
			for _, r := range lost {
				for at := r.Start; at < r.End; at += image.PageSize {
					imagetest.Put(t, w, 0, 7, want[7][at/image.PageSize], image.Extent{Addr: at, Pages: 1})
				}
			}
			imagetest.Finish(t, w, want.Present())
			imagetest.CheckMemory(t, append(c[:2:2], imagetest.Link{Memory: m, ID: [16]byte{9}, Content: want, Kind: image.KindFull}).Open(t, 2), want)
		})
	}
}

func onParent(t *testing.T, parent *reader.Checkpoint) (*writer.Writer, *storetest.Memory) {
	t.Helper()
	m := storetest.NewMemory()
	w, err := writer.New(m, writer.Options{Shards: 1, ID: [16]byte{9}, Parent: parent, ParentPath: "../c1"})
	if err != nil {
		t.Fatal(err)
	}
	return w, m
}

func overlap(ranges []image.Range, addr uint64) (image.Range, bool) {
	for _, r := range ranges {
		if r.Start <= addr && addr < r.End {
			return r, true
		}
	}
	return image.Range{}, false
}

// TestDamagedFileOfTheParent is not compared with either.
func TestDamagedFileOfTheParent(t *testing.T) {
	c := imagetest.Counters(t, 3, 1, writer.Options{})
	parent := c.Open(t, 0)
	for _, u := range parent.Uses() {
		if u.File {
			c[0].Files["img-0"][u.Offset+u.Len/2] ^= 1
		}
	}
	w, m := onParent(t, parent)
	imagetest.PutFile(t, w, "core-7.img", imagetest.Tagged(3, 1)[:100])
	if blocks, why := w.Unread(); blocks != 1 || why == nil {
		t.Errorf("%d blocks are not read: %v", blocks, why)
	}
	imagetest.Finish(t, w, c[0].Content.Present())
	p := append(c[:1:1], imagetest.Link{Memory: m, ID: [16]byte{9}, Content: c[0].Content, Kind: image.KindFull}).Open(t, 1)
	if got := imagetest.FileOf(t, p, "core-7.img"); !bytes.Equal(got, imagetest.Tagged(3, 1)[:100]) {
		t.Errorf("the file is %x", got)
	}
}
