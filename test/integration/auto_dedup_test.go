package integration

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// TestAutoDedupWithATracker dumps a program that writes here and there, with --auto-dedup, until all checkpoints together take less than
// before: the newest has been written anew then, with another id. The tracker has to be armed for that one, so that every dump goes on to
// copy only what was written; the last one has to restore.
func TestAutoDedupWithATracker(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	p := testkit.StartSubject(t, "mem:mib=32,rate=40,watch=no")
	t.Cleanup(func() { _ = stasis.StopTracker(p.PID()) })
	room := t.TempDir()
	var last, lastID string
	var rewind func()
	dump := func(n int) {
		t.Helper()
		for begun := p.Note(t).Has["written"]; p.Note(t).Has["written"] < begun+1500; { // of 8192 pages
			<-time.After(time.Millisecond)
		}
		dir := filepath.Join(room, fmt.Sprintf("c%02d", n))
		rewind = p.Snapshot()
		result, err := stasis.Dump(t.Context(), stasis.DumpOptions{PID: p.PID(), Dir: dir, Parent: last, Track: true, AutoDedup: true, After: stasis.AfterRun})
		if err != nil {
			t.Fatal(err)
		}
		if len(result.Notes) > 0 {
			t.Fatalf("dump %d: notes: %q", n, result.Notes)
		}
		last, lastID = dir, result.Manifest.ID
		trackers, err := stasis.Trackers()
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(trackers, func(k stasis.TrackerInfo) bool { return k.PID == p.PID() }); i < 0 || trackers[i].Armed != lastID {
			t.Fatalf("dump %d: the tracker is not armed for %s: %+v", n, lastID, trackers)
		}
	}
	dump(0)
	const most = 40
	n := 1
	for shrank := false; !shrank; n++ {
		if n == most {
			t.Fatalf("after %d dumps nothing was given back", n)
		}
		before := diskOf(t, room)
		dump(n)
		shrank = diskOf(t, room) < before
	}
	t.Logf("after %d dumps they take %d KiB", n, diskOf(t, room)>>10)
	dump(n)
	testkit.Kill(t, p.PID())
	if _, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: last}); err != nil {
		t.Fatal(err)
	}
	rewind()
	p.Prove(t)
}

// diskOf is what the files in the folders of a folder take on disk, in bytes.
func diskOf(t *testing.T, room string) (total int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(room, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil {
			total += st.Blocks * 512
		}
	}
	return total
}
