package soak

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/testkit"
)

// What is done to checkpoints, and with CRIU's own images.

// remove deletes a checkpoint, which others may build on.
func (w *walk) remove() string {
	w.t.Helper()
	if len(w.links) == 0 {
		return ""
	}
	dir := w.links[w.random.IntN(len(w.links))].dir
	if _, err := chain.Remove([]string{dir}, chain.Options{}); err != nil {
		w.t.Fatalf("remove %s: %v", dir, err)
	}
	w.look()
	return dir
}

func (w *walk) prune() string {
	w.t.Helper()
	keep := 1 + w.random.IntN(6)
	if _, _, err := chain.Prune(w.room, chain.PruneOptions{Policy: chain.Policy{Last: keep}}); err != nil {
		w.t.Fatalf("prune, keeping %d: %v", keep, err)
	}
	w.look()
	return fmt.Sprintf("the last %d stay", keep)
}

// pruneBeside deletes whatever can be deleted while a dump is made on top of it.
func (w *walk) pruneBeside() string {
	w.t.Helper()
	what := w.dumpWith(w.parent(), stasis.AfterRun, func() {
		if _, _, err := chain.Prune(w.room, chain.PruneOptions{Policy: chain.Policy{Last: 1}}); err != nil {
			w.t.Errorf("prune beside a dump: %v", err)
		}
	})
	w.look()
	return what
}

func (w *walk) dedup(thorough bool) string {
	w.t.Helper()
	l := w.pick(restorable)
	if l == nil {
		return ""
	}
	report, err := chain.Dedup(w.t.Context(), l.dir, chain.Options{Thorough: thorough}, nil)
	if err != nil {
		w.t.Fatalf("dedup %s: %v", l.dir, err)
	}
	w.look()
	return fmt.Sprintf("%s, %d bytes freed", l.dir, report.Freed)
}

func (w *walk) compact() string {
	w.t.Helper()
	l := w.pick(restorable)
	if l == nil {
		return ""
	}
	if w.random.IntN(2) == 0 {
		if _, err := chain.Compact(w.t.Context(), l.dir, chain.CompactOptions{}); err != nil {
			w.t.Fatalf("compact %s: %v", l.dir, err)
		}
		w.look()
		return l.dir
	}
	alone := w.next()
	made, err := chain.Compact(w.t.Context(), l.dir, chain.CompactOptions{To: alone.dir, Shards: 1 + w.random.IntN(8)})
	if err != nil {
		w.t.Fatalf("compact %s to %s: %v", l.dir, alone.dir, err)
	}
	alone.rewind = l.rewind
	w.add(alone, made.Manifest)
	return fmt.Sprintf("%s to %s", l.dir, alone.dir)
}

func (w *walk) verify() string {
	w.t.Helper()
	l := w.pick(anyLink)
	if l == nil {
		return ""
	}
	result, err := stasis.Verify(w.t.Context(), stasis.VerifyOptions{Dir: l.dir})
	if err != nil {
		w.t.Fatalf("verify %s: %v", l.dir, err)
	}
	return fmt.Sprintf("%s, %d blocks", l.dir, result.Blocks)
}

// exported writes CRIU's images of a checkpoint, and returns their folder.
func (w *walk) exported(l *link, chain bool) string {
	w.t.Helper()
	out := filepath.Join(w.t.TempDir(), "criu")
	result, err := stasis.Export(w.t.Context(), stasis.ExportOptions{Dir: l.dir, Out: out, Chain: chain})
	if err != nil {
		w.t.Fatalf("export %s (chain %t): %v", l.dir, chain, err)
	}
	return result.Folders[len(result.Folders)-1].Dir
}

// export lets stock CRIU bring the program back.
func (w *walk) export() string {
	w.t.Helper()
	l := w.pick(restorable)
	if l == nil {
		return ""
	}
	chain := w.random.IntN(2) == 0
	dir := w.exported(l, chain)
	testkit.Kill(w.t, w.p.PID())
	// Unlike Stasis, stock CRIU does not wait for thread ids that the kernel has not given back yet.
	tries := 1
	for err := errors.New(""); err != nil; tries++ {
		if err = testkit.StockCRIU(w.t).Restore(w.t, dir, testkit.Needs{}); err != nil && tries == 3 {
			w.t.Fatalf("stock CRIU, of %s: %v", l.dir, err)
		}
	}
	w.isBack(l)
	return fmt.Sprintf("%s, chain %t, at the %d. try", l.dir, chain, tries-1)
}

// roundabout takes a checkpoint out to CRIU's images and in again.
func (w *walk) roundabout() string {
	w.t.Helper()
	l := w.pick(restorable)
	if l == nil {
		return ""
	}
	chain := w.random.IntN(2) == 0
	again := w.imported(w.exported(l, chain))
	again.rewind = l.rewind
	return fmt.Sprintf("%s, chain %t, to %s", l.dir, chain, again.dir)
}

func (w *walk) imported(path string) *link {
	w.t.Helper()
	l := w.next()
	result, err := stasis.Import(w.t.Context(), stasis.ImportOptions{Path: path, Dir: l.dir, Streams: 1 + w.random.IntN(8), Compression: w.codec()})
	if err != nil {
		w.t.Fatalf("import %s: %v", path, err)
	}
	w.add(l, result.Manifest)
	return l
}

// importStock makes a checkpoint of what stock CRIU dumps.
func (w *walk) importStock() string {
	w.t.Helper()
	images := filepath.Join(w.t.TempDir(), "criu")
	if err := os.Mkdir(images, 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := testkit.StockCRIU(w.t).Dump(w.t, w.p.PID(), images, testkit.Needs{}, false); err != nil {
		w.t.Fatalf("stock CRIU's dump: %v", err)
	}
	return w.imported(images).dir
}
