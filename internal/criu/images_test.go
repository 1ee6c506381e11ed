package criu

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"

	"stasis/internal/proc"
)

const page = proc.PageSize

func TestDropLazyKeepsWhatCRIUHas(t *testing.T) {
	dir := t.TempDir()
	head, _ := proto.Marshal(&pagemap.PagemapHead{PagesId: proto.Uint32(7)})
	entry := func(at uint64, flags uint32) *pagemap.PagemapEntry {
		return &pagemap.PagemapEntry{Vaddr: proto.Uint64(at * page), CompatNrPages: proto.Uint32(2), NrPages: proto.Uint64(2), Flags: proto.Uint32(flags)}
	}
	path := filepath.Join(dir, "pagemap-42.img")
	if err := writePagemap(path, head, []*pagemap.PagemapEntry{entry(1, pagePresent|pageLazy), entry(5, pageLazy), entry(9, pagePresent)}); err != nil {
		t.Fatal(err)
	}
	missing, err := Missing(dir, 42)
	if err != nil || len(missing) != 1 || missing[0].Start != 5*page {
		t.Fatalf("missing %v, %v", missing, err)
	}
	for range 2 { // the second time nothing is left to do
		if err := DropLazy(dir, 42); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		id, runs, err := DecodePagemap(data)
		want := []PageRun{{1 * page, 2, PagePresent}, {9 * page, 2, PagePresent}}
		if err != nil || id != 7 || !slices.Equal(runs, want) {
			t.Fatalf("pages %d, %v, want %v: %v", id, runs, want, err)
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
