package criu

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"stasis/internal/proc"
)

// TestTheLibraryHidesPages runs a program that asks for its pages as CRIU does,
// with random ranges hidden from it and room for few or many answers.
func TestTheLibraryHidesPages(t *testing.T) {
	program := filepath.Join(t.TempDir(), "scan")
	if out, err := exec.Command("gcc", "-O1", "-o", program, "testdata/scan.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	random := rand.New(rand.NewPCG(5, 6))
	for _, vector := range []int{1, 7, 600, 1364, 1365, 1366, 4096} {
		for range 5 {
			var hidden []proc.Range // in pages
			for at := uint64(0); at < 4096; {
				n := uint64(1 + random.IntN(500))
				if random.IntN(2) == 0 {
					hidden = append(hidden, proc.Range{Start: at, End: min(at+n, 4096)})
				}
				at += n
			}
			checkHidden(t, program, vector, hidden)
		}
	}
}

func checkHidden(t *testing.T, program string, vector int, hidden []proc.Range) {
	t.Helper()
	blind, err := NewBlind()
	if err != nil {
		t.Fatal(err)
	}
	defer blind.Close()
	cmd := exec.Command(program, strconv.Itoa(vector))
	cmd.Env = append(os.Environ(), blind.environment()...)
	cmd.ExtraFiles = make([]*os.File, 3)
	cmd.ExtraFiles[tableFD-3], cmd.ExtraFiles[libraryFD-3] = blind.table, blind.library
	cmd.Stderr = os.Stderr
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	var pid int
	var base uint64
	fmt.Sscan(lines.Text(), &pid, &base)
	ranges := map[int][]proc.Range{pid: nil, pid + 1: {{Start: base, End: base + 4096*page}}, pid - 1: {{Start: base, End: base + 4096*page}}}
	for _, r := range hidden {
		ranges[pid] = append(ranges[pid], proc.Range{Start: base + r.Start*page, End: base + r.End*page})
	}
	blind.Hide(ranges)
	fmt.Fprintln(in, "go")
	seen := map[uint64]bool{}
	for lines.Scan() {
		n, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seen[n] = true
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(4096) {
		want := n%3 == 0
		for _, r := range hidden {
			want = want && (n < r.Start || n >= r.End)
		}
		if seen[n] != want {
			t.Fatalf("room for %d answers, hidden %v: page %d is seen: %t, want %t", vector, hidden, n, seen[n], want)
		}
	}
}

func TestHideKeepsTheLargestRanges(t *testing.T) {
	var all []hiddenRange
	for i := range 100 {
		size := uint64(1+i%10) * page
		all = append(all, hiddenRange{1, proc.Range{Start: uint64(i) << 30, End: uint64(i)<<30 + size}})
	}
	kept := largest(all, 30)
	if len(kept) != 30 {
		t.Fatalf("%d ranges kept", len(kept))
	}
	for i, r := range kept {
		if r.Len() < 8*page || i > 0 && r.Start <= kept[i-1].Start {
			t.Fatalf("kept %v", r)
		}
	}
}
