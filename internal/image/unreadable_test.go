package image

import (
	"bytes"
	"errors"
	"testing"

	"stasis/internal/store/storetest"
)

// TestDamagedParentIsNotCompared damages a block of the parent after it was opened, or of what it builds on. What is put is stored whole,
// what lies beside it is listed, and with that put too the checkpoint needs nothing of the block: it is right with the damage still
// there. Without, there is none.
func TestDamagedParentIsNotCompared(t *testing.T) {
	const pages, changed = 4 * MaxPages, 64 + 4*MaxPages - 1
	for _, test := range []struct {
		name   string
		origin int
		cut    bool
	}{{"base flipped", 1, false}, {"base cut off", 1, true}, {"differences flipped", 0, false}} {
		t.Run(test.name, func(t *testing.T) {
			c := counters(t, pages, 2, WriterOptions{})
			parent := c.open(t, 1)
			var use Use
			for _, u := range parent.Uses() {
				if !u.File && u.Origin == test.origin {
					use = u // the last, in which the last page is
				}
			}
			files := c[1-test.origin].Files
			if files["img-0"][use.Offset+use.Len/2] ^= 1; test.cut {
				files["img-0"] = files["img-0"][:use.Offset+use.Len/2]
			}
			want := c[1].memory.clone()
			page := bytes.Clone(want[7][changed])
			page[9]++
			want.set(7, changed, page)
			for _, lenient := range []bool{false, true} {
				w, m := onParent(t, parent)
				put(t, w, 0, 7, page, Extent{changed * PageSize, 1})
				blocks, why := w.Unread()
				lost, found := w.Lost(7, 0)
				if blocks == 0 || why == nil || found == 0 || len(lost) == 0 || lost[len(lost)-1].End != (changed+1)*PageSize {
					t.Fatalf("%d blocks are not read (%v), %d found, lost are %v", blocks, why, found, lost)
				}
				if more, same := w.Lost(7, found); len(more) > 0 || same != found {
					t.Errorf("%v is lost twice", more)
				}
				manifest := testManifest()
				if lenient {
					manifest.Kind = KindPreDump
				}
				err := w.Finish(want.present(), manifest)
				if !lenient {
					if !errors.Is(err, ErrLost) || !errors.As(err, new(*DamageError)) {
						t.Errorf("nobody put what lies beside: %v", err)
					}
					continue
				}
				// A pre-dump just lacks it.
				if err != nil {
					t.Fatal(err)
				}
				has := append(c[:2:2], link{m, [16]byte{9}, want, KindPreDump}).open(t, 2).Ranges(7)
				if _, there := overlap(has, lost[0].Start); there {
					t.Errorf("it has %v, and %v is lost", has, lost)
				}
			}
			w, m := onParent(t, parent)
			put(t, w, 0, 7, page, Extent{changed * PageSize, 1})
			lost, _ := w.Lost(7, 0)
			for _, r := range lost {
				for at := r.Start; at < r.End; at += PageSize {
					put(t, w, 0, 7, want[7][at/PageSize], Extent{at, 1})
				}
			}
			finish(t, w, want.present())
			checkMemory(t, append(c[:2:2], link{m, [16]byte{9}, want, KindFull}).open(t, 2), want)
		})
	}
}

func onParent(t *testing.T, parent *Checkpoint) (*Writer, *storetest.Memory) {
	t.Helper()
	m := storetest.NewMemory()
	w, err := NewWriter(m, WriterOptions{Shards: 1, ID: [16]byte{9}, Parent: parent, ParentPath: "../c1"})
	if err != nil {
		t.Fatal(err)
	}
	return w, m
}

func overlap(ranges []Range, addr uint64) (Range, bool) {
	for _, r := range ranges {
		if r.Start <= addr && addr < r.End {
			return r, true
		}
	}
	return Range{}, false
}

// TestDamagedFileOfTheParent is not compared with either.
func TestDamagedFileOfTheParent(t *testing.T) {
	c := counters(t, 3, 1, WriterOptions{})
	parent := c.open(t, 0)
	for _, u := range parent.Uses() {
		if u.File {
			c[0].Files["img-0"][u.Offset+u.Len/2] ^= 1
		}
	}
	w, m := onParent(t, parent)
	putFile(t, w, "core-7.img", tagged(3, 1)[:100])
	if blocks, why := w.Unread(); blocks != 1 || why == nil {
		t.Errorf("%d blocks are not read: %v", blocks, why)
	}
	finish(t, w, c[0].memory.present())
	p := append(c[:1:1], link{m, [16]byte{9}, c[0].memory, KindFull}).open(t, 1)
	if got := fileOf(t, p, "core-7.img"); !bytes.Equal(got, tagged(3, 1)[:100]) {
		t.Errorf("the file is %x", got)
	}
}
