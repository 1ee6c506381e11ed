package integration

import (
	"path/filepath"
	"slices"
	"testing"

	"stasis"
	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// TestMappingsStayWhole: memory with huge pages is put back in another way than what lies around them, and is one mapping again
// afterwards. A program that moves or grows it by mremap(2) would fail otherwise.
func TestMappingsStayWhole(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	p := testkit.StartSubject(t, "mem:mib=7,rate=0,thp=yes,alone=yes")
	before, rewind := anonymous(t, p.PID()), p.Snapshot()
	dir := filepath.Join(t.TempDir(), "one")
	if _, err := stasis.Dump(t.Context(), stasis.DumpOptions{PID: p.PID(), Dir: dir, After: stasis.AfterKill}); err != nil {
		t.Fatal(err)
	}
	for _, tracked := range []bool{false, true} {
		if _, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: dir, Track: tracked}); err != nil {
			t.Fatal(err)
		}
		rewind()
		p.Prove(t)
		if after := anonymous(t, p.PID()); !slices.Equal(before, after) {
			t.Errorf("tracked %t: private memory was %x and is %x", tracked, before, after)
		}
		testkit.Kill(t, p.PID())
	}
}

// anonymous are the mappings of private memory without a file.
func anonymous(t *testing.T, pid int) (ranges []proc.Range) {
	t.Helper()
	maps, err := proc.Maps(pid)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maps {
		if m := &maps[i]; m.Anonymous() && m.Private() {
			ranges = append(ranges, m.Range)
		}
	}
	return ranges
}
