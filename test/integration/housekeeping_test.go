package integration

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/testkit"
)

// TestHousekeeping dumps a program in a chain, and restores it after each of what can be done to the chain: a removal of the middle, a
// deduplication, a compaction.
func TestHousekeeping(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	kinds := testkit.Kinds()
	kind := kinds[slices.IndexFunc(kinds, func(k testkit.Kind) bool { return k.Name == "memory-written" })]
	p := kind.Start(t)
	p.Work(t)
	lib, place := library{engine: stasis.EngineAuto}, t.TempDir()
	var dirs []string
	var rewinds []func()
	parent := ""
	for i, name := range []string{"one", "two", "three", "four"} {
		dir := filepath.Join(place, name)
		rewinds = append(rewinds, p.Snapshot())
		if err := lib.DumpOn(t, p.PID(), dir, parent, kind.Needs, false); err != nil {
			t.Fatal(err)
		}
		dirs, parent = append(dirs, dir), dir
		if i < 3 {
			p.Work(t)
		}
	}
	restore := func(when, dir string, rewind func()) {
		t.Helper()
		testkit.Kill(t, p.PID())
		if err := lib.Restore(t, dir, kind.Needs); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		rewind()
		p.Prove(t)
		p.Work(t)
		p.Prove(t)
	}
	alone := filepath.Join(place, "alone")
	if _, err := chain.Compact(t.Context(), dirs[2], chain.CompactOptions{To: alone}); err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Remove(dirs[1:2], chain.Options{}); err != nil {
		t.Fatal(err)
	}
	restore("after the removal of the second", dirs[3], rewinds[3])
	restore("the first, without the second", dirs[0], rewinds[0])
	if _, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: dirs[1]}); !errors.Is(err, store.ErrNoCheckpoint) {
		t.Errorf("the second, which was removed: %v", err)
	}
	report, err := chain.Dedup(t.Context(), dirs[3], chain.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// By chance a program that writes here and there leaves no whole block that nobody needs.
	t.Logf("dedup gave back %d KiB", report.Freed>>10)
	restore("after deduplication", dirs[3], rewinds[3])
	more, err := chain.Dedup(t.Context(), dirs[3], chain.Options{Thorough: true}, nil)
	if err != nil || more.Freed < 1<<20 {
		t.Fatalf("a thorough dedup gave back %+v, %v", more, err)
	}
	if _, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: dirs[0]}); !errors.As(err, new(*chain.DedupedError)) {
		t.Errorf("the first, which was deduplicated: %v", err)
	}
	t.Logf("a thorough one gave back %d KiB", more.Freed>>10)
	restore("after a thorough deduplication", dirs[3], rewinds[3])
	if _, err := chain.Compact(t.Context(), dirs[3], chain.CompactOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Remove([]string{dirs[0], dirs[2]}, chain.Options{}); err != nil {
		t.Fatal(err)
	}
	restore("compacted, with nothing else there", dirs[3], rewinds[3])
	restore("compacted before the others went", alone, rewinds[2])
	// Of the chain nothing is left but what was compacted.
	entries, err := os.ReadDir(place)
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
