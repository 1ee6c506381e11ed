package criu

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"

	"stasis/internal/proc"
)

const page = proc.PageSize

// TestMergeLazyAgainstAMap merges random page maps and compares every page with
// a naive map: CRIU's own pages stay, the others become lazy, in order.
func TestMergeLazyAgainstAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		want := map[uint64]uint32{}
		var ranges []proc.Range
		var entries []*pagemap.PagemapEntry
		for at := uint64(0); at < 60; {
			n := uint64(1 + random.IntN(6))
			if random.IntN(2) == 0 {
				ranges = append(ranges, proc.Range{Start: at * page, End: (at + n) * page})
				for i := range n {
					want[at+i] = pageLazy
				}
			}
			at += n + uint64(random.IntN(2))
		}
		for at := uint64(0); at < 60; {
			n := uint64(1 + random.IntN(4))
			if random.IntN(3) == 0 {
				entries = append(entries, &pagemap.PagemapEntry{
					Vaddr: proto.Uint64(at * page), CompatNrPages: proto.Uint32(uint32(n)), Flags: proto.Uint32(pagePresent),
				})
				for i := range n {
					want[at+i] = pagePresent
				}
			}
			at += n
		}
		got, last := map[uint64]uint32{}, uint64(0)
		for _, e := range mergeLazy(entries, ranges) {
			r := entryRange(e)
			if r.Start < last {
				t.Fatalf("entry %#x comes behind %#x", r.Start, last)
			}
			last = r.End
			for at := r.Start; at < r.End; at += page {
				got[at/page] = e.GetFlags()
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d pages, want %d", len(got), len(want))
		}
		for at, flags := range want {
			if got[at] != flags {
				t.Fatalf("page %d has flags %d, want %d", at, got[at], flags)
			}
		}
	}
}

func TestAddLazyRewritesThePageMap(t *testing.T) {
	dir := t.TempDir()
	head, _ := proto.Marshal(&pagemap.PagemapHead{PagesId: proto.Uint32(7)})
	entry := func(at uint64, flags uint32) *pagemap.PagemapEntry {
		return &pagemap.PagemapEntry{Vaddr: proto.Uint64(at * page), CompatNrPages: proto.Uint32(1), Flags: proto.Uint32(flags)}
	}
	path := filepath.Join(dir, "pagemap-42.img")
	if err := writePagemap(path, head, []*pagemap.PagemapEntry{entry(1, pagePresent|pageLazy), entry(5, pageLazy)}); err != nil {
		t.Fatal(err)
	}
	missing, err := Missing(dir, 42)
	if err != nil || len(missing) != 1 || missing[0].Start != 5*page {
		t.Fatalf("missing %v, %v", missing, err)
	}
	if err := AddLazy(dir, 42, []proc.Range{{Start: 3 * page, End: 6 * page}}); err != nil {
		t.Fatal(err)
	}
	var got []uint32
	first := true
	err = readEntries(path, func(raw []byte) error {
		if first {
			first = false
			if !bytes.Equal(raw, head) {
				t.Errorf("the head has changed: %x", raw)
			}
			return nil
		}
		var e pagemap.PagemapEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		got = append(got, uint32(e.GetVaddr()/page), uint32(e.GetNrPages()), e.GetFlags())
		return nil
	})
	want := []uint32{1, 0, pagePresent, 3, 3, pageLazy}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
}

func FuzzDecodeEntries(f *testing.F) {
	image := binary.LittleEndian.AppendUint32(nil, magicCommon)
	image = binary.LittleEndian.AppendUint32(image, magicPagemap)
	f.Add(append(image, 2, 0, 0, 0, 8, 7))
	f.Add(append(image, 255, 255, 255, 255))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		err := decodeEntries(data, func(raw []byte) error { total += len(raw); return nil })
		if err == nil && total > len(data) {
			t.Errorf("%d bytes of entries in %d", total, len(data))
		}
	})
}

func TestErrorLinesSkipNoise(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dump.log")
	log := `(00.000010) Error (criu/rlimit.c:5): rlimit: Can't setup RLIMIT_NOFILE for self
(00.005000) Warn  (criu/x.c:5): something
(00.006000) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.
(00.007000) Error (criu/cr-dump.c:2098): Dumping FAILED.
`
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := errorLines(path)
	if len(lines) != 1 || lines[0] != "inet: Connected TCP socket, consider using --tcp-established option." {
		t.Errorf("%q", lines)
	}
	if remedy, _ := Remedy(lines); remedy == "" {
		t.Error("no remedy for it")
	}
}
