package criu

import (
	"bytes"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"
)

// encodeEntries makes a page map of entries as they are.
func encodeEntries(tb testing.TB, entries ...*pagemap.PagemapEntry) []byte {
	tb.Helper()
	head, err := proto.Marshal(&pagemap.PagemapHead{PagesId: proto.Uint32(7)})
	if err != nil {
		tb.Fatal(err)
	}
	var out bytes.Buffer
	if err := encodePagemap(&out, head, entries); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// TestDecodePagemapOfOlderVersions: without flags a run is present, unless it is said to be in the parent.
func TestDecodePagemapOfOlderVersions(t *testing.T) {
	text := encodeEntries(t,
		&pagemap.PagemapEntry{Vaddr: proto.Uint64(page), CompatNrPages: proto.Uint32(2)},
		&pagemap.PagemapEntry{Vaddr: proto.Uint64(3 * page), CompatNrPages: proto.Uint32(1), InParent: proto.Bool(true)},
		&pagemap.PagemapEntry{Vaddr: proto.Uint64(9 * page), CompatNrPages: proto.Uint32(1), NrPages: proto.Uint64(5), Flags: proto.Uint32(6)},
	)
	id, runs, err := DecodePagemap(text)
	want := []PageRun{{page, 2, PagePresent}, {3 * page, 1, PageInParent}, {9 * page, 5, PagePresent | PageLazy}}
	if err != nil || id != 7 || !slices.Equal(runs, want) {
		t.Errorf("%d, %v, %v; should be %v", id, runs, err, want)
	}
}

// TestDecodePagemapRefuses what no CRIU writes.
func TestDecodePagemapRefuses(t *testing.T) {
	entry := func(at, pages uint64) *pagemap.PagemapEntry {
		return &pagemap.PagemapEntry{Vaddr: proto.Uint64(at), CompatNrPages: proto.Uint32(1), NrPages: proto.Uint64(pages), Flags: proto.Uint32(4)}
	}
	for name, text := range map[string][]byte{
		"pages in the wrong order": encodeEntries(t, entry(4*page, 1), entry(page, 1)),
		"pages twice":              encodeEntries(t, entry(page, 4), entry(2*page, 1)),
		"no pages":                 encodeEntries(t, entry(page, 0)),
		"half a page":              encodeEntries(t, entry(page/2, 1)),
		"too many pages":           encodeEntries(t, entry(page, 1<<60)),
		"an address of the kernel": encodeEntries(t, entry(1<<63, 1)),
		"no head":                  encodeEntries(t)[:8],
		"nothing":                  nil,
		"an image of another kind": encodeImage(t),
	} {
		if _, runs, err := DecodePagemap(text); err == nil {
			t.Errorf("%s: %v", name, runs)
		}
	}
}

// FuzzDecodePagemap: what is decoded can be encoded, and is the same then.
func FuzzDecodePagemap(f *testing.F) {
	f.Add(encodeEntries(f, &pagemap.PagemapEntry{Vaddr: proto.Uint64(page), CompatNrPages: proto.Uint32(2), Flags: proto.Uint32(6)}))
	f.Fuzz(func(t *testing.T, text []byte) {
		id, runs, err := DecodePagemap(text)
		if err != nil {
			return
		}
		if slices.ContainsFunc(runs, func(r PageRun) bool { return r.Pages > 1<<30 }) {
			return // takes more than one entry
		}
		again, err := EncodePagemap(id, runs)
		if err != nil {
			t.Fatal(err)
		}
		otherID, other, err := DecodePagemap(again)
		if err != nil || otherID != id || !slices.Equal(other, runs) {
			t.Errorf("%d %v became %d %v, %v", id, runs, otherID, other, err)
		}
	})
}
