package integration

import (
	"path/filepath"
	"testing"

	"stasis"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// TestMemoryThatADeviceWrites: a tracker does not see what is read into memory
// that is registered with an io_uring.
func TestMemoryThatADeviceWrites(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	p := testkit.StartSubject(t, "pinned", "mem:mib=4,rate=0,watch=no")
	t.Cleanup(func() { _ = stasis.StopTracker(p.PID()) })
	room := t.TempDir()
	first, second := filepath.Join(room, "first"), filepath.Join(room, "second")
	ahead, err := stasis.PreDump(t.Context(), stasis.PreDumpOptions{PID: p.PID(), Dir: first})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("pre-dump: %q", ahead.Notes)
	if version := p.Note(t).Has["version"]; version != 2 {
		t.Fatalf("the program has not read, its memory has version %d", version)
	}
	dump, err := stasis.Dump(t.Context(), stasis.DumpOptions{PID: p.PID(), Dir: second, Parent: first})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("dump: %q", dump.Notes)
	testkit.Kill(t, p.PID())
	if _, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: second}); err != nil {
		t.Fatal(err)
	}
	p.Prove(t)
}
