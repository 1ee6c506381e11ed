package integration

import (
	"slices"
	"testing"

	"stasis"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

var _ testkit.ChainCheckpointer = library{}

// PreDump implements [testkit.ChainCheckpointer].
func (l library) PreDump(t testkit.T, pid int, dir, parent string) error {
	t.Helper()
	_, err := stasis.PreDump(t.Context(), stasis.PreDumpOptions{PID: pid, Dir: dir, Parent: parent})
	return err
}

// DumpOn implements [testkit.ChainCheckpointer].
func (l library) DumpOn(t testkit.T, pid int, dir, parent string, needs testkit.Needs, kill bool) error {
	t.Helper()
	after := stasis.AfterRun
	if kill {
		after = stasis.AfterKill
	}
	result, err := stasis.Dump(t.Context(), stasis.DumpOptions{
		PID: pid, Dir: dir, Parent: parent, Track: true, Engine: l.engine, After: after, CRIU: options(needs),
	})
	if err != nil {
		return err
	}
	m := result.Manifest
	t.Logf("chained: %d of %d KiB of memory by reference, %d KiB stored, notes %q",
		m.Figures.BytesReferenced>>10, m.Figures.BytesMemory>>10, m.Figures.BytesStored>>10, result.Notes)
	return nil
}

// TestChain: every kind of program through a chain with a pre-dump.
func TestChain(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, kind := range testkit.Kinds() {
		if kind.Refused != "" {
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			testkit.ChainTrip(t, kind, library{engine: stasis.EngineAuto, track: true})
		})
	}
}

// TestChainLazy: the memory of a chain comes while the program runs, and all of
// it is compared in the next dump, as no tracker can be armed then.
func TestChainLazy(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, kind := range testkit.Kinds() {
		if slices.Contains([]string{"memory-written", "memory-guards", "tree", "redis"}, kind.Name) {
			t.Run(kind.Name, func(t *testing.T) {
				testkit.ChainTrip(t, kind, library{engine: stasis.EngineAuto, lazy: true})
			})
		}
	}
}
