package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"stasis"
	"stasis/internal/convert"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// converted are the kinds whose checkpoints are taken to CRIU's images and back: every way in which memory is kept.
var converted = []string{"memory-written", "memory-kinds", "memory-huge-pages", "memory-reserved", "memory-shared", "sysv-shm", "threads",
	"tree", "children", "files", "network", "file-locks"}

// convertedChains are those that go through chains.
var convertedChains = []string{"memory-written", "memory-kinds", "memory-shared", "tree", "network"}

// exporting dumps with Stasis and restores with stock CRIU.
type exporting struct {
	library
	stock testkit.Checkpointer
	chain bool // export all of the chain
}

func (e exporting) Restore(t testkit.T, dir string, needs testkit.Needs) error {
	t.Helper()
	out := filepath.Join(dir, "criu")
	exported, err := export(t.Context(), dir, out, e.chain)
	if err != nil {
		return err
	}
	for _, f := range exported.Folders {
		t.Logf("%s: %s with %d pages, %d in the parent", filepath.Base(f.Dir), f.Kind, f.Pages, f.ParentPages)
	}
	return e.stock.Restore(t, exported.Folders[len(exported.Folders)-1].Dir, needs)
}

func export(ctx context.Context, dir, out string, chain bool) (*convert.Exported, error) {
	line, err := convert.OpenLine(dir, chain)
	if err != nil {
		return nil, err
	}
	defer line.Close()
	return convert.Export(ctx, line.Checkpoints, out, convert.ExportOptions{Chain: chain, Workers: runtime.NumCPU()})
}

// TestExport: what Stasis dumped, stock CRIU restores.
func TestExport(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, engine := range []stasis.Engine{stasis.EngineBlind, stasis.EngineLazyPages} {
		for _, kind := range testkit.Kinds() {
			if !slices.Contains(converted, kind.Name) || engine == stasis.EngineLazyPages && (slices.Contains(notLazy, kind.Name) || !slices.Contains(hard, kind.Name)) {
				continue
			}
			t.Run(string(engine)+"/"+kind.Name, func(t *testing.T) {
				testkit.RoundTrip(t, kind, exporting{library{engine: engine}, testkit.StockCRIU(t), false})
			})
		}
	}
}

// TestExportChain: from any point of a chain, with and without folders for the ancestors, stock CRIU restores.
func TestExportChain(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, kind := range testkit.Kinds() {
		if !slices.Contains(convertedChains, kind.Name) {
			continue
		}
		for _, chain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/chain=%v", kind.Name, chain), func(t *testing.T) {
				testkit.ChainTrip(t, kind, exporting{library{engine: stasis.EngineAuto}, testkit.StockCRIU(t), chain})
			})
		}
	}
}
