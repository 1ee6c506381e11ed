package kernels

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stasis"
	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/track"
)

// TestAutoIsWhatIsExpected: scripts/test-kernels knows which tracker a kernel has.
func TestAutoIsWhatIsExpected(t *testing.T) {
	require.Root(t)
	got, err := track.Choose(track.KindAuto)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("tracker: auto is %s here; userfaultfd: %s; soft-dirty: %s", got, orYes(track.Available()), orYes(track.SoftDirtyAvailable()))
	if want := os.Getenv("STASIS_EXPECT_TRACKER"); want != "" && string(got) != want {
		t.Errorf("auto is %s, want %s", got, want)
	}
}

func orYes(err error) string {
	if err == nil {
		return "yes"
	}
	return err.Error()
}

// TestATrackerThatCannotBeHadIsRefused asks for each tracker that does not work
// here.
func TestATrackerThatCannotBeHadIsRefused(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for kind, why := range map[track.Kind]error{
		track.KindUserfaultfd: track.Available(), track.KindSoftDirty: track.SoftDirtyAvailable(),
	} {
		if why == nil {
			continue
		}
		w := startWorker(t)
		w.do("fill")
		dir := filepath.Join(t.TempDir(), "dump")
		_, err := stasis.Dump(t.Context(), stasis.DumpOptions{PID: w.pid, Dir: dir, Tracker: string(kind)})
		if err == nil {
			t.Fatalf("a dump with tracker %s succeeded, and that is not available: %v", kind, why)
		}
		t.Logf("%s is refused: %v", kind, err)
		reason := map[track.Kind]string{track.KindUserfaultfd: "6.7", track.KindSoftDirty: "CONFIG_MEM_SOFT_DIRTY"}[kind]
		if !strings.Contains(err.Error(), string(kind)) || !strings.Contains(err.Error(), reason) {
			t.Errorf("the error names neither the tracker nor %s: %v", reason, err)
		}
		w.do("prove") // it goes on
	}
}

// TestChain takes a program with memory that proves itself through a pre-dump and
// three dumps, and restores the last and the first of them, with every tracker
// that this kernel has.
func TestChain(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, c := range []struct {
		kind  track.Kind
		check func() error
		name  string
	}{
		{track.KindUserfaultfd, track.Available, "WP_ASYNC"},
		{track.KindSoftDirty, track.SoftDirtyAvailable, "soft-dirty"},
		{track.KindNone, func() error { return nil }, ""},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			if err := c.check(); err != nil {
				require.Missing(t, c.name, "%v", err)
			}
			chain(t, c.kind)
		})
	}
}

func chain(t *testing.T, kind track.Kind) {
	t.Helper()
	w, folder := startWorker(t), t.TempDir()
	w.do("fill")
	var parent string
	if kind != track.KindNone { // which has no pre-dumps
		parent = filepath.Join(folder, "pre")
		if _, err := stasis.PreDump(t.Context(), stasis.PreDumpOptions{PID: w.pid, Dir: parent, Tracker: string(kind)}); err != nil {
			t.Fatal(err)
		}
	}
	w.do("write 100")
	first := w.dump(folder, "first", parent, kind, false)
	w.do("write 100")
	w.do("drop 20")
	second := w.dump(folder, "second", first, kind, false)
	w.do("write 50")
	w.do("prove")
	orders := w.orders
	third := w.dump(folder, "third", second, kind, true)

	w.restore(third, orders)
	w.do("prove")
	w.do("write 100")
	w.do("prove")
	w.kill()
	w.restore(first, orders)
	w.do("prove")
}

// dump dumps on top of a parent, and checks that no more was copied than has to
// be.
func (w *worker) dump(folder, name, parent string, kind track.Kind, kill bool) string {
	w.t.Helper()
	opts := stasis.DumpOptions{
		PID: w.pid, Dir: filepath.Join(folder, name), Parent: parent, Tracker: string(kind),
		Track: kind != track.KindNone && !kill, After: stasis.AfterRun,
	}
	if kill {
		opts.After = stasis.AfterKill
	}
	result, err := stasis.Dump(w.t.Context(), opts)
	if err != nil {
		w.t.Fatalf("dump %s: %v", name, err)
	}
	if kill {
		w.reap()
	}
	f := result.Manifest.Figures
	var copied int64
	for _, round := range f.Rounds {
		copied += round.Bytes
	}
	w.t.Logf("%s with %s, engine %s: %d KiB of memory, %d KiB copied, %d KiB stored, pause %d us, notes %q", name, kind,
		result.Manifest.Engine, f.BytesMemory>>10, copied>>10, f.BytesStored>>10, f.PauseUS, result.Notes)
	const memory = workerPages * proc.PageSize
	if parent != "" && f.BytesStored > memory/4 {
		w.t.Errorf("%s holds %d bytes, which is no small part of %d: the chain is not incremental", name, f.BytesStored, memory)
	}
	if parent != "" && kind != track.KindNone && copied > memory/2 {
		w.t.Errorf("%s copied %d bytes, of %d in all: the tracker is of no use", name, copied, memory)
	}
	return opts.Dir
}

// restore restores a checkpoint in place of the worker. Orders that were given
// after the dump are no orders for it.
func (w *worker) restore(dir string, orders int) {
	w.t.Helper()
	w.orders = max(w.orders, orders)
	result, err := stasis.Restore(w.t.Context(), stasis.RestoreOptions{Dir: dir})
	if err != nil {
		w.t.Fatalf("restore %s: %v", filepath.Base(dir), err)
	}
	w.pid = result.PID
}
