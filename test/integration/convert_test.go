package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"stasis"
	"stasis/internal/codec"
	"stasis/internal/convert"
	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/testkit"
)

// converted are the kinds whose checkpoints are taken to CRIU's images and back: every way in which memory is kept.
var converted = []string{"memory-written", "memory-kinds", "memory-guards", "memory-huge-pages", "memory-reserved", "memory-shared", "sysv-shm", "threads",
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
	line, err := convert.OpenLine(ctx, dir, chain)
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

// importing dumps with stock CRIU and restores with Stasis.
type importing struct {
	stock testkit.Checkpointer
	library
}

func (i importing) Dump(t testkit.T, pid int, dir string, needs testkit.Needs, kill bool) error {
	t.Helper()
	images := filepath.Join(dir, "criu")
	if err := os.Mkdir(images, 0o700); err != nil {
		return err
	}
	if err := i.stock.Dump(t, pid, images, needs, kill); err != nil {
		return err
	}
	imported, err := importTo(t.Context(), images, filepath.Join(dir, "checkpoint"))
	if err != nil {
		return err
	}
	m := imported.Manifest
	t.Logf("imported: %d KiB of memory in blocks, %d KiB with CRIU", m.Figures.BytesMemory>>10, imported.Kept>>10)
	return os.RemoveAll(images)
}

func (i importing) Restore(t testkit.T, dir string, needs testkit.Needs) error {
	t.Helper()
	return i.library.Restore(t, filepath.Join(dir, "checkpoint"), needs)
}

func importTo(ctx context.Context, from, to string) (*convert.Imported, error) {
	lz4, err := codec.New("lz4", 0)
	if err != nil {
		return nil, err
	}
	return convert.Import(ctx, from, convert.ImportOptions{
		Target: func(string) (store.Target, error) { return store.CreateFolder(to) }, Shards: 2, Codec: lz4, Workers: runtime.NumCPU(),
	})
}

// TestImport: what stock CRIU dumped, Stasis restores, with all memory in place and lazily.
func TestImport(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, lazy := range []bool{false, true} {
		for _, kind := range testkit.Kinds() {
			if slices.Contains(converted, kind.Name) {
				t.Run(fmt.Sprintf("%s/lazy=%v", kind.Name, lazy), func(t *testing.T) {
					testkit.RoundTrip(t, kind, importing{testkit.StockCRIU(t), library{lazy: lazy}})
				})
			}
		}
	}
}

// roundabout takes a chain out to CRIU's folders and back in, and restores that.
type roundabout struct{ library }

func (r roundabout) Restore(t testkit.T, dir string, needs testkit.Needs) error {
	t.Helper()
	exported, err := export(t.Context(), dir, filepath.Join(dir, "criu"), true)
	if err != nil {
		return err
	}
	last := exported.Folders[len(exported.Folders)-1]
	imported, err := importTo(t.Context(), last.Dir, filepath.Join(dir, "imported"))
	if err != nil {
		return err
	}
	if imported.Layers != len(exported.Folders) {
		return fmt.Errorf("the import followed %d folders of %d", imported.Layers, len(exported.Folders))
	}
	return r.library.Restore(t, filepath.Join(dir, "imported"), needs)
}

// TestImportChain: folders of CRIU with links to their parents.
func TestImportChain(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, kind := range testkit.Kinds() {
		if slices.Contains(convertedChains, kind.Name) && !kind.Shares { // what is shared stays with CRIU on all these ways
			t.Run(kind.Name, func(t *testing.T) {
				testkit.ChainTrip(t, kind, roundabout{library{engine: stasis.EngineAuto, lazy: kind.Name == "memory-written"}})
			})
		}
	}
}
