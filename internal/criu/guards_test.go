package criu

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/proc"
)

// area is a mapping, or a guard, of whole pages.
func area(start, end uint64, flags, status uint32) *vma.VmaEntry {
	return &vma.VmaEntry{
		Start: proto.Uint64(start * proc.PageSize), End: proto.Uint64(end * proc.PageSize), Pgoff: proto.Uint64(0), Shmid: proto.Uint64(0),
		Prot: proto.Uint32(0), Flags: &flags, Status: &status, Fd: proto.Int64(-1),
	}
}

func mappingsOf(areas ...*vma.VmaEntry) *mm.MmEntry {
	zero := proto.Uint64(0)
	return &mm.MmEntry{
		MmStartCode: zero, MmEndCode: zero, MmStartData: zero, MmEndData: zero, MmStartStack: zero, MmStartBrk: zero, MmBrk: zero,
		MmArgStart: zero, MmArgEnd: zero, MmEnvStart: zero, MmEnvEnd: zero, ExeFileId: proto.Uint32(1), Vmas: areas,
	}
}

// Guards in locked memory are taken out, those elsewhere are CRIU's, and one that
// lies in both is cut.
func TestMendGuards(t *testing.T) {
	const plain, locked = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_LOCKED
	mappings := []*vma.VmaEntry{
		area(10, 20, plain, AreaRegular), area(20, 30, locked, AreaRegular), area(30, 40, plain, AreaRegular), area(50, 60, locked, AreaRegular),
	}
	for name, test := range map[string]struct{ guards, kept, taken []proc.Range }{
		"none":                     {nil, nil, nil},
		"elsewhere":                {pages(12, 13, 19, 20, 30, 31), pages(12, 13, 19, 20, 30, 31), nil},
		"in locked memory":         {pages(12, 13, 20, 21, 29, 30, 55, 57), pages(12, 13), pages(20, 21, 29, 30, 55, 57)},
		"across the begin":         {pages(18, 22), pages(18, 20), pages(20, 22)},
		"across the end":           {pages(28, 32), pages(30, 32), pages(28, 30)},
		"over all of it":           {pages(15, 35), pages(15, 20, 30, 35), pages(20, 30)},
		"listed twice":             {pages(22, 24, 26, 27, 22, 24, 26, 27), nil, pages(22, 24, 26, 27)},
		"neighbours listed apart":  {pages(22, 24, 24, 25), nil, pages(22, 25)},
		"in two locked mappings":   {pages(25, 55), pages(30, 50), pages(25, 30, 50, 55)},
		"beyond all that is there": {pages(70, 71), pages(70, 71), nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir, all := t.TempDir(), slices.Clone(mappings)
			for _, g := range test.guards {
				all = append(all, area(g.Start/proc.PageSize, g.End/proc.PageSize, 0, AreaGuard))
			}
			writeImage(t, dir, "mm-7.img", mappingsOf(all...))
			taken, err := MendGuards(dir, 7)
			if err != nil || !slices.Equal(taken, test.taken) {
				t.Errorf("%v were taken (%v), want %v", taken, err, test.taken)
			}
			var left mm.MmEntry
			if err := readEntries(filepath.Join(dir, "mm-7.img"), func(raw []byte) error { return proto.Unmarshal(raw, &left) }); err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(mappings)
			for _, g := range test.kept {
				want = append(want, area(g.Start/proc.PageSize, g.End/proc.PageSize, 0, AreaGuard))
			}
			if !proto.Equal(&left, mappingsOf(want...)) {
				t.Errorf("the image has %v, want %v", left.GetVmas(), want)
			}
		})
	}
}

// pages makes ranges of numbers of pages.
func pages(bounds ...uint64) (ranges []proc.Range) {
	for i := 0; i < len(bounds); i += 2 {
		ranges = append(ranges, proc.Range{Start: bounds[i] * proc.PageSize, End: bounds[i+1] * proc.PageSize})
	}
	return ranges
}

func TestMendGuardsOfBadImages(t *testing.T) {
	if taken, err := MendGuards(t.TempDir(), 7); taken != nil || err != nil {
		t.Errorf("of a zombie: %v, %v", taken, err)
	}
	dir := t.TempDir()
	writeImage(t, dir, "mm-7.img", mappingsOf(area(1, 2, 0, AreaGuard)))
	path := filepath.Join(dir, "mm-7.img")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := 9; n < len(whole); n++ {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := MendGuards(dir, 7); err == nil {
			t.Errorf("an image cut after %d of %d bytes is taken", n, len(whole))
		}
	}
}
