package jobs

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"stasis"
	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
)

// A job that ends just as its checkpoint is due has done nothing wrong: what is known of it afterwards is how it ended, and not that its shim, or its
// process, could not be found.
func TestEndsJustAsItsCheckpointIsDue(t *testing.T) {
	for name, c := range map[string]struct {
		exit db.Exit
		want db.State
	}{"done": {db.Exit{}, db.StateDone}, "failed": {db.Exit{Code: 3}, db.StateFailed}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world, dir string) {
				t := w.t
				m := w.open(t, dir, nil)
				defer closeManager(t, m)
				w.takes = time.Second
				info := run(t, m, db.Spec{Name: "short", Every: time.Minute})
				w.mu.Lock()
				w.fail = func(pid int) error {
					w.byPID(pid).end(&c.exit)
					return fmt.Errorf("%w: dial unix /x/shim.sock: %w", stasis.ErrProcess, shim.ErrGone)
				}
				w.mu.Unlock()
				pass(2 * time.Minute)
				synctest.Wait()
				info = get(t, m, info.Spec.Name)
				if info.State != c.want || info.Message != "" || info.Dumping {
					t.Errorf("it is %s, and says %q", info.State, info.Message)
				}
				if failed := events(t, m, EventDumpFailed); len(failed) != 0 {
					t.Errorf("a checkpoint failed: %+v", failed)
				}
				if said := events(t, m, EventSkipped); len(said) != 1 || !strings.Contains(said[0].Text, "just ended "+shim.Describe(&c.exit)) {
					t.Errorf("what is said of the checkpoint: %+v", said)
				}
				if _, err := m.Dump(t.Context(), "short", DumpRequest{}); !errors.Is(err, ErrState) {
					t.Errorf("a dump of what has ended: %v", err)
				}
			})
		})
	}
}

// Somebody who ends a job does not read afterwards that a checkpoint failed, which was given up for that.
func TestKilledDuringItsCheckpoint(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		w.takes = 30 * time.Second
		run(t, m, db.Spec{Name: "slow", Every: time.Minute})
		pass(70 * time.Second)
		if info, err := m.Kill(t.Context(), "slow", syscall.SIGTERM, false); err != nil || info.State != db.StateKilled || info.Message != "" {
			t.Errorf("it is %s, and says %q, %v", info.State, info.Message, err)
		}
		if said := events(t, m, EventSkipped, EventDumpFailed); len(said) != 1 || said[0].Kind != EventSkipped || !strings.Contains(said[0].Text, "given up") {
			t.Errorf("what is said of the checkpoint: %+v", said)
		}
	})
}
