package jobs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/jobs/db"
	"stasis/internal/require"
)

// A disk without space costs what is to be written to it, and nothing else: jobs are looked after all the same, and when there is space
// again, everything is known again.
func TestDatabaseOnAFullDisk(t *testing.T) {
	require.Root(t)
	dir := t.TempDir()
	small := filepath.Join(dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("stasis", small, "tmpfs", 0, "size=512k"); err != nil {
		require.Missing(t, "mount", "mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w := newWorld()
	w.t = t
	there := func(o *Options) { o.Database = filepath.Join(small, "state.db") }
	m := w.open(t, dir, there)
	run(t, m, db.Spec{Name: "a", Restart: db.RestartOnFailure})
	if err := os.WriteFile(filepath.Join(small, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	var made int
	for range 200 {
		d, err := m.Dump(t.Context(), "a", DumpRequest{})
		if err != nil {
			t.Fatal(err)
		}
		made = int(d.Seq)
	}
	w.shimOf(m, "a").end(&db.Exit{Code: 1})
	until(t, "it is back", func() bool { i := get(t, m, "a"); return i.State == db.StateRunning && i.Restores == 1 })
	if err := os.Remove(filepath.Join(small, "filler")); err != nil {
		t.Fatal(err)
	}
	closeManager(t, m)
	m = w.open(t, dir, there)
	defer closeManager(t, m)
	list, err := m.Checkpoints("a")
	if err != nil || len(list) != made {
		t.Fatalf("%d checkpoints are known of %d, %v", len(list), made, err)
	}
	if written := events(t, m, EventCheckpointed); len(written) == made {
		t.Fatal("all events could be written: the disk was never full")
	}
	if got := get(t, m, "a"); got.State != db.StateRunning {
		t.Fatalf("%+v", got)
	}
}
