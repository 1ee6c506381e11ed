package jobs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"stasis"
	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
)

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		restart db.Restart
		exit    db.Exit
		want    db.State
		how     string // of the last run: "restored", "started" or ""
	}{
		{db.RestartNever, db.Exit{}, db.StateDone, ""},
		{db.RestartNever, db.Exit{Code: 3}, db.StateFailed, ""},
		{db.RestartOnFailure, db.Exit{}, db.StateDone, ""},
		{db.RestartOnFailure, db.Exit{Code: 3}, db.StateRunning, EventRestored},
		{db.RestartOnFailure, db.Exit{Code: -1, Signal: "SIGKILL"}, db.StateRunning, EventRestored},
		{db.RestartAlways, db.Exit{}, db.StateRunning, EventStarted},
		{db.RestartAlways, db.Exit{Code: 3}, db.StateRunning, EventRestored},
	} {
		t.Run(fmt.Sprintf("%s, code %d", c.restart, c.exit.Code), func(t *testing.T) {
			inBubble(t, func(w *world, dir string) {
				t := w.t
				m := w.open(t, dir, nil)
				defer closeManager(t, m)
				run(t, m, db.Spec{Name: "a", Restart: c.restart})
				if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
					t.Fatal(err)
				}
				w.shimOf(m, "a").end(&c.exit)
				synctest.Wait()
				if got := get(t, m, "a"); got.State != c.want {
					t.Fatalf("it is %s, want %s", got.State, c.want)
				}
				all := events(t, m, EventRestored, EventStarted)
				if last := all[len(all)-1].Kind; c.how != "" && (last != c.how || len(all) != 2) {
					t.Fatalf("it was %s last, want %s", last, c.how)
				}
				if s := w.shimOf(m, "a"); s.dead != (c.how == "") {
					t.Fatalf("its shim: gone is %v", s.dead)
				}
			})
		})
	}
}

func TestOlderCheckpointIfTheNewestFails(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartOnFailure})
		for range 3 {
			if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		w.bad["000003"] = fmt.Errorf("%w: block 7", shim.ErrDamaged)
		w.shimOf(m, "a").end(&db.Exit{Code: 1})
		synctest.Wait()
		if got := get(t, m, "a"); got.State != db.StateRunning || got.Parent != 2 || got.Last.Seq != 2 {
			t.Fatalf("%+v", got)
		}
		said := events(t, m, EventRestoreFailed)
		if len(said) != 1 || !strings.Contains(said[0].Text, "trying the older checkpoint 2") {
			t.Fatalf("said: %+v", said)
		}
		// That it is damaged is remembered, also by the next manager.
		closeManager(t, m)
		m = w.open(t, dir, nil)
		defer closeManager(t, m)
		w.shimOf(m, "a").end(&db.Exit{Code: 1})
		pass(2 * time.Second) // the second in a row
		synctest.Wait()
		if got := w.shimOf(m, "a").restored; !slices.Equal(got, []string{"000003", "000002", "000002"}) {
			t.Fatalf("tried %v", got)
		}
		// The next checkpoint builds on the one it came from.
		var parent string
		w.dumpO = func(o stasis.DumpOptions) error { parent = filepath.Base(o.Parent); return nil }
		if d, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil || d.Seq != 4 || parent != "000002" {
			t.Fatalf("checkpoint %+v on %s, %v", d, parent, err)
		}
	})
}

func TestBackoffAndGivingUp(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartOnFailure, MaxRetries: 4, RestartDelay: 2 * time.Second})
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		w.bad["000001"] = errors.New("a pid is taken")
		begun := time.Now()
		w.shimOf(m, "a").end(&db.Exit{Code: 1})
		pass(time.Hour)
		synctest.Wait()
		failed := events(t, m, EventRestoreFailed)
		if len(failed) != 5 {
			t.Fatalf("%d times said: %+v", len(failed), failed)
		}
		for i, want := range []time.Duration{0, 2 * time.Second, 6 * time.Second, 14 * time.Second, 14 * time.Second} {
			if got := failed[i].At.Sub(begun); got != want {
				t.Errorf("attempt %d after %v, want %v", i+1, got, want)
			}
		}
		if got := get(t, m, "a"); got.State != db.StateFailed || !strings.Contains(got.Message, "restore job a") {
			t.Fatalf("%+v", got)
		}
		// By hand it works again, once the reason is gone.
		delete(w.bad, "000001")
		if got, err := m.Restore(t.Context(), "a", RestoreRequest{}); err != nil || got.Checkpoint.Seq != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		// A job that always crashes at once, after a good restore, is not brought back for ever either.
		for range 6 {
			if s := w.shimOf(m, "a"); get(t, m, "a").State == db.StateRunning {
				s.end(&db.Exit{Code: 1})
			}
			pass(time.Minute)
			synctest.Wait()
		}
	})
}

func TestCrashLoopEnds(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartAlways})
		crashes := 0
		for begun := time.Now(); time.Since(begun) < time.Hour; pass(100 * time.Millisecond) {
			if get(t, m, "a").State == db.StateRunning {
				w.shimOf(m, "a").end(&db.Exit{Code: 1})
				crashes++
			}
		}
		if got := get(t, m, "a"); got.State != db.StateFailed || crashes != defaultRetries+1 {
			t.Fatalf("%s after %d crashes: %s", got.State, crashes, got.Message)
		}
	})
}

func TestKill(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartAlways})
		if _, err := m.Kill(t.Context(), "a", syscall.SIGUSR1, false); err != nil {
			t.Fatal(err)
		}
		w.shimOf(m, "a").deaf = true
		if _, err := m.Kill(t.Context(), "a", syscall.SIGTERM, false); !errors.Is(err, ErrState) {
			t.Fatalf("a job that does not listen: %v", err)
		}
		if got := get(t, m, "a"); got.State != db.StateRunning {
			t.Fatalf("it is %s", got.State)
		}
		// The request is over: a crash later is a crash.
		w.shimOf(m, "a").end(&db.Exit{Code: 1})
		synctest.Wait()
		if got := get(t, m, "a"); got.State != db.StateRunning {
			t.Fatalf("after a crash it is %s", got.State)
		}
		// A dump under way is given up for a kill.
		w.takes = time.Hour
		go func() { _, _ = m.Dump(context.Background(), "a", DumpRequest{}) }()
		synctest.Wait()
		begun := time.Now()
		got, err := m.Kill(t.Context(), "a", syscall.SIGKILL, false)
		if err != nil || got.State != db.StateKilled || time.Since(begun) > time.Second {
			t.Fatalf("killed: %+v, %v, after %v", got.State, err, time.Since(begun))
		}
		pass(time.Hour)
		if got := get(t, m, "a"); got.State != db.StateKilled || got.PID != 0 {
			t.Fatalf("an hour later it is %s", got.State)
		}
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); !errors.Is(err, ErrState) {
			t.Fatalf("dump of a dead job: %v", err)
		}
	})
}

func TestSuspendAndRestore(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartAlways})
		if _, err := m.Dump(t.Context(), "a", DumpRequest{After: stasis.AfterKill}); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		if got := get(t, m, "a"); got.State != db.StateSuspended {
			t.Fatalf("it is %s", got.State)
		}
		for _, at := range []string{"", "1", "000001", "a-1", strings.Repeat("0", 31) + "1"} {
			if got, err := m.Restore(t.Context(), "a", RestoreRequest{At: at}); err != nil || got.Checkpoint.Seq != 1 {
				t.Fatalf("at %q: %+v, %v", at, got, err)
			}
		}
		if _, err := m.Restore(t.Context(), "a", RestoreRequest{At: "7"}); !errors.Is(err, stasis.ErrInput) {
			t.Fatalf("at a checkpoint that is not there: %v", err)
		}
		// A running job is not ended for a damaged checkpoint.
		w.bad["000001"] = shim.ErrDamaged
		pid := get(t, m, "a").PID
		if _, err := m.Restore(t.Context(), "a", RestoreRequest{At: "1"}); err == nil || !strings.Contains(err.Error(), "runs on") {
			t.Fatalf("restore from a damaged one: %v", err)
		}
		if got := get(t, m, "a"); got.State != db.StateRunning || got.PID != pid {
			t.Fatalf("%+v", got)
		}
	})
}
