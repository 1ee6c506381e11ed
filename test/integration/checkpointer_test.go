// Package integration takes real programs through dumps and restores, and wants
// all their state back. It has only tests. Each starts its own programs; the
// machine is shared, so they run one after the other.
package integration

import (
	"fmt"

	"stasis"
	"stasis/internal/testkit"
)

// library is Stasis as a Go program uses it.
type library struct {
	engine stasis.Engine
	lazy   bool
	track  bool // also after a restore
}

var _ testkit.Checkpointer = library{}

func options(needs testkit.Needs) stasis.CRIUOptions {
	return stasis.CRIUOptions{TCPEstablished: needs.TCPEstablished, FileLocks: needs.FileLocks, LinkRemap: needs.LinkRemap}
}

// Dump implements [testkit.Checkpointer].
func (l library) Dump(t testkit.T, pid int, dir string, needs testkit.Needs, kill bool) error {
	t.Helper()
	after := stasis.AfterRun
	if kill {
		after = stasis.AfterKill
	}
	_, err := stasis.Dump(t.Context(), stasis.DumpOptions{PID: pid, Dir: dir, Engine: l.engine, After: after, CRIU: options(needs)})
	return err
}

// Restore implements [testkit.Checkpointer].
func (l library) Restore(t testkit.T, dir string, needs testkit.Needs) error {
	t.Helper()
	result, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: dir, Lazy: l.lazy, Track: l.track})
	if err == nil && len(result.Warnings) > 0 {
		return fmt.Errorf("warnings of the restore: %q", result.Warnings)
	}
	return err
}
