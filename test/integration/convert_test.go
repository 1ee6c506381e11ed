package integration

import (
	"context"
	"os"
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

// exporting dumps with Stasis and restores with stock CRIU.
type exporting struct {
	library
	stock testkit.Checkpointer
}

func (e exporting) Restore(t testkit.T, dir string, needs testkit.Needs) error {
	t.Helper()
	out := filepath.Join(dir, "criu")
	if err := export(t.Context(), dir, out, false); err != nil {
		return err
	}
	return e.stock.Restore(t, out, needs)
}

func export(ctx context.Context, dir, out string, chain bool) error {
	line, err := convert.OpenLine(dir, chain)
	if err != nil {
		return err
	}
	defer line.Close()
	_, err = convert.Export(ctx, line.Checkpoints, out, convert.ExportOptions{Chain: chain, Workers: runtime.NumCPU()})
	return err
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
				testkit.RoundTrip(t, kind, exporting{library{engine: engine}, testkit.StockCRIU(t)})
			})
		}
	}
}

var _ = os.Remove
