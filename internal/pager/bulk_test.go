//go:build linux && (amd64 || arm64)

package pager

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"stasis/internal/image"
	"stasis/internal/proc"
)

func TestHugePagesComeBackHuge(t *testing.T) {
	if hugeMode() == "never" {
		t.Skip("requires transparent huge pages")
	}
	src := dense{newPattern(4096+100, 64)}
	h := open(t, src, src.pages, Options{}, "huge")
	h.ask("t 600 1 600") // a page of the second huge page is there before: that one is filled page by page
	h.ask("j")
	h.ask("s")
	failed := hugePagesNotHad(t)
	h.fill()
	failed = hugePagesNotHad(t) - failed // of this and all other programs
	maps, err := proc.Smaps(h.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	var huge uint64
	for _, m := range maps {
		if m.Start >= base && m.End <= base+uint64(src.pages)*pageSize {
			huge += m.HugeBytes
		}
	}
	if want := uint64(7 * hugePage); huge > want || huge+failed*hugePage < want {
		t.Errorf("%d bytes in huge pages, want %d; the machine had none %d times", huge, want, failed)
	}
	h.ask("v 0 %d 0", src.pages)
}

// hugePagesNotHad is how often a program on this machine wanted a huge page and none was to be had in one piece.
func hugePagesNotHad(t *testing.T) uint64 {
	t.Helper()
	counters, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(counters)) {
		var n uint64
		if _, err := fmt.Sscanf(line, "thp_fault_fallback %d", &n); err == nil {
			return n
		}
	}
	t.Fatal("/proc/vmstat does not say thp_fault_fallback")
	return 0
}

// dense is a pattern that has all pages: the empty ones as data.
type dense struct{ *pattern }

func (s dense) Ranges(int) []image.Range {
	return []image.Range{{Start: base, End: base + uint64(s.pages)*pageSize}}
}
