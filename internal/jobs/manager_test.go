package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
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

// inBubble runs a test in accelerated time: the clock jumps to the next timer when nothing else is to be done.
func inBubble(t *testing.T, test func(t *testing.T, w *world, dir string)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { test(t, newWorld(), dir) })
}

func TestAnHourOfSchedule(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		w.takes = 2 * time.Second
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "minutes", Every: time.Minute, Keep: db.Keep{Last: 5}})
		run(t, m, db.Spec{Name: "cron", Cron: "*/10 * * * *"})
		run(t, m, db.Spec{Name: "quiet"})
		var parents []string
		w.mu.Lock()
		w.dumpO = func(o stasis.DumpOptions) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if strings.HasPrefix(o.Name, "minutes") {
				parents = append(parents, filepath.Base(o.Parent))
				if !o.Track {
					return errors.New("not tracked")
				}
			}
			return nil
		}
		w.mu.Unlock()
		time.Sleep(time.Hour + 30*time.Second)
		synctest.Wait()
		list, err := m.Checkpoints("minutes")
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != 5 || list[4].Seq != 60 || list[0].Seq != 56 {
			t.Fatalf("after an hour: %d checkpoints, %+v", len(list), list)
		}
		for i := 1; i < len(list); i++ {
			if got := list[i].Created.Sub(list[i-1].Created); got != time.Minute {
				t.Errorf("%v between two checkpoints", got)
			}
		}
		w.mu.Lock()
		for i, parent := range parents[1:] {
			if parent != number(uint64(i+1)) {
				t.Errorf("checkpoint %d builds on %s", i+2, parent)
			}
		}
		w.mu.Unlock()
		if list, _ := m.Checkpoints("cron"); len(list) != 6 {
			t.Errorf("cron: %d checkpoints, want 6", len(list))
		} else if at := list[0].Created.Add(-w.takes); at.Minute()%10 != 0 || at.Second() != 0 {
			t.Errorf("cron: a checkpoint at %v", at)
		}
		if list, _ := m.Checkpoints("quiet"); len(list) != 0 {
			t.Errorf("no schedule, but %d checkpoints", len(list))
		}
		if skipped := events(t, m, EventSkipped, EventDumpFailed); len(skipped) != 0 {
			t.Errorf("skipped or failed: %+v", skipped)
		}
		if next := get(t, m, "minutes").Next; !next.After(time.Now()) || time.Until(next) > time.Minute {
			t.Errorf("the next is due at %v, it is %v", next, time.Now())
		}
	})
}

func TestLateOnesAreSkippedAndSaid(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		w.takes = 25 * time.Second
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "slow", Every: 10 * time.Second})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// One at 10, 40, 70 …: those 10 and 20 seconds later find it under way, and that is said once for each.
		list, _ := m.Checkpoints("slow")
		skipped := events(t, m, EventSkipped)
		if w.most != 1 || len(list) < 19 || len(list) > 20 || len(skipped) != len(list) && len(skipped) != len(list)+1 {
			t.Fatalf("%d checkpoints, %d skipped, %d at once", len(list), len(skipped), w.most)
		}
	})
}

func TestTwoHundredJobs(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		w.takes = 100 * time.Millisecond
		m := w.open(t, dir, func(o *Options) { o.Parallel = 4 })
		for i := range 200 {
			run(t, m, db.Spec{Name: fmt.Sprintf("job-%d", i), Every: time.Minute, Keep: db.Keep{Last: 2}, Restart: db.RestartOnFailure})
		}
		time.Sleep(3*time.Minute + 30*time.Second)
		synctest.Wait()
		if w.mostAll != 4 || w.most != 1 {
			t.Fatalf("%d dumps at once, of one job %d", w.mostAll, w.most)
		}
		for _, info := range m.List(0) {
			if info.Checkpoints != 2 || info.Last.Seq != 3 || info.State != db.StateRunning {
				t.Fatalf("%s: %+v", info.Spec.Name, info)
			}
		}
		// Half of them crash, the manager goes down and comes back.
		for i := range 100 {
			w.shimOf(m, fmt.Sprintf("job-%d", i)).end(&db.Exit{Code: 1})
		}
		closeManager(t, m)
		m = w.open(t, dir, nil)
		defer closeManager(t, m)
		time.Sleep(time.Second)
		synctest.Wait()
		for _, info := range m.List(0) {
			if info.State != db.StateRunning {
				t.Fatalf("%s is %s", info.Spec.Name, info.State)
			}
		}
		if back := events(t, m, EventRestored); len(back) != 100 {
			t.Fatalf("%d jobs were brought back", len(back))
		}
	})
}

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
			inBubble(t, func(t *testing.T, w *world, dir string) {
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
	inBubble(t, func(t *testing.T, w *world, dir string) {
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
		time.Sleep(2 * time.Second) // the second in a row
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
	inBubble(t, func(t *testing.T, w *world, dir string) {
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartOnFailure, MaxRetries: 4, RestartDelay: 2 * time.Second})
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		w.bad["000001"] = errors.New("a pid is taken")
		begun := time.Now()
		w.shimOf(m, "a").end(&db.Exit{Code: 1})
		time.Sleep(time.Hour)
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
			time.Sleep(time.Minute)
			synctest.Wait()
		}
	})
}

func TestCrashLoopEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartAlways})
		crashes := 0
		for begun := time.Now(); time.Since(begun) < time.Hour; time.Sleep(100 * time.Millisecond) {
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
	inBubble(t, func(t *testing.T, w *world, dir string) {
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
		time.Sleep(time.Hour)
		if got := get(t, m, "a"); got.State != db.StateKilled || got.PID != 0 {
			t.Fatalf("an hour later it is %s", got.State)
		}
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); !errors.Is(err, ErrState) {
			t.Fatalf("dump of a dead job: %v", err)
		}
	})
}

func TestSuspendAndRestore(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartAlways})
		if _, err := m.Dump(t.Context(), "a", DumpRequest{After: stasis.AfterKill}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
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

// Whatever becomes of the database, the jobs are known again from beside their checkpoints.
func TestDatabaseIsMadeAnew(t *testing.T) {
	for _, damage := range []string{"gone", "garbage"} {
		t.Run(damage, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, dir string) {
				m := w.open(t, dir, nil)
				run(t, m, db.Spec{Name: "a", Every: time.Minute, Keep: db.Keep{Last: 3}, Restart: db.RestartOnFailure})
				run(t, m, db.Spec{Name: "lost", Every: time.Minute, Restart: db.RestartOnFailure})
				other, err := m.Run(t.Context(), db.Spec{Name: "b", Argv: []string{"x"}, Every: time.Minute}, 1000)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(5*time.Minute + time.Second)
				synctest.Wait()
				before, _ := m.Checkpoints("a")
				was := get(t, m, "a")
				w.shimOf(m, "lost").die() // and its process with it
				closeManager(t, m)
				path := filepath.Join(dir, "state.db")
				if damage == "gone" {
					err = os.Remove(path)
				} else {
					err = os.WriteFile(path, []byte(strings.Repeat("garbage", 9999)), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				m = w.open(t, dir, nil)
				defer closeManager(t, m)
				synctest.Wait()
				after, _ := m.Checkpoints("a")
				if len(before) != 3 || len(after) != 3 || before[0].ID != after[0].ID || !before[2].Created.Equal(after[2].Created) {
					t.Fatalf("before\n%+v\nafter\n%+v", before, after)
				}
				now := get(t, m, "a")
				if now.ID != was.ID || now.Spec.Every != time.Minute || now.State != db.StateRunning || now.PID != was.PID || now.LastSeq != was.LastSeq {
					t.Fatalf("was\n%+v\nis\n%+v", was, now)
				}
				if got := get(t, m, "lost"); got.State != db.StateRunning || got.Parent != 5 {
					t.Fatalf("the job whose process is gone too: %+v", got)
				}
				if got := get(t, m, "b"); got.Owner != 1000 || got.ID != other.ID {
					t.Fatalf("another user's: %+v", got)
				}
				if said := events(t, m, EventRebuilt); len(said) < 3 {
					t.Fatalf("said: %+v", said)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if list, _ := m.Checkpoints("a"); list[len(list)-1].Seq != 6 {
					t.Fatalf("it does not go on: %+v", list)
				}
			})
		})
	}
}

func TestEvacuate(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		m := w.open(t, dir, func(o *Options) { o.Parallel = 2 })
		defer closeManager(t, m)
		for i := range 8 {
			run(t, m, db.Spec{Name: fmt.Sprint("j", i)})
		}
		run(t, m, db.Spec{Name: "ended"})
		w.shimOf(m, "ended").end(&db.Exit{})
		broken := get(t, m, "j3").PID
		synctest.Wait()
		w.takes = 10 * time.Second
		w.fail = func(pid int) error {
			if pid == broken {
				return errors.New("the disk is full")
			}
			return nil
		}
		begun := time.Now()
		var safe, unsafe []string
		err := m.Evacuate(t.Context(), 25*time.Second, stasis.AfterRun, 0, nil, func(o Outcome) {
			if o.Safe != (o.Err == nil) || o.Safe != (o.Checkpoint != nil) {
				t.Errorf("%+v", o)
			}
			if o.Safe {
				safe = append(safe, o.Job.Spec.Name)
			} else {
				unsafe = append(unsafe, o.Job.Spec.Name)
			}
		})
		// Two at a time, two rounds of ten seconds: four places, of which the broken one may have had one.
		if took := time.Since(begun); err != nil || took > 26*time.Second || len(safe)+len(unsafe) != 8 || len(safe) < 3 || len(safe) > 4 {
			t.Fatalf("after %v: safe %v, not safe %v, %v", took, safe, unsafe, err)
		}
		if err := m.Evacuate(t.Context(), 0, stasis.AfterRun, 0, nil, nil); !errors.Is(err, stasis.ErrInput) {
			t.Fatalf("without a deadline: %v", err)
		}
	})
}

func TestStopMakesCheckpoints(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		m := w.open(t, dir, func(o *Options) { o.DumpOnStop = true })
		for i := range 3 {
			run(t, m, db.Spec{Name: fmt.Sprint("j", i)})
		}
		closeManager(t, m)
		w.takes = 0
		m = w.open(t, dir, nil)
		defer closeManager(t, m)
		for _, info := range m.List(0) {
			if info.State != db.StateRunning || info.Last == nil || info.Last.Reason != ReasonStop {
				t.Fatalf("%+v", info)
			}
		}
	})
}

func TestBadSpecsAreSaid(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "taken"})
		for _, spec := range []db.Spec{
			{Argv: []string{""}},
			{Argv: []string{"no-such-command"}},
			{Argv: []string{"x"}, Name: "../up"},
			{Argv: []string{"x"}, Name: "a/b"},
			{Argv: []string{"x"}, Name: ".hidden"},
			{Argv: []string{"x"}, Name: "taken"},
			{Argv: []string{"x"}, Every: time.Millisecond},
			{Argv: []string{"x"}, Cron: "often"},
			{Argv: []string{"x"}, Every: time.Minute, Cron: "@hourly"},
			{Argv: []string{"x"}, Restart: "maybe"},
			{Argv: []string{"x"}, Dir: "relative"},
			{Argv: []string{"x"}, WithFiles: []string{"relative"}},
			{Argv: []string{"x"}, Keep: db.Keep{Last: -1}},
		} {
			_, err := m.Run(t.Context(), spec, 0)
			if !errors.Is(err, stasis.ErrInput) && !errors.Is(err, ErrExists) {
				t.Errorf("%+v: %v", spec, err)
			}
		}
		if got := m.List(0); len(got) != 1 {
			t.Fatalf("%d jobs are left", len(got))
		}
		if a, b := run(t, m, db.Spec{Argv: []string{"/usr/bin/my prog"}}), run(t, m, db.Spec{Argv: []string{"my prog"}}); a.Spec.Name != "my-prog" || b.Spec.Name != "my-prog-2" {
			t.Fatalf("named %s and %s", a.Spec.Name, b.Spec.Name)
		}
		if _, err := m.Get("nobody"); !errors.Is(err, ErrUnknown) {
			t.Fatal(err)
		}
		if got, err := m.Get(get(t, m, "taken").ID[:9]); err != nil || got.Spec.Name != "taken" {
			t.Fatalf("by id: %+v, %v", got, err)
		}
	})
}

func TestUpdateAndRemove(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		m := w.open(t, dir, nil)
		run(t, m, db.Spec{Name: "a", Every: time.Hour})
		every := time.Minute
		if _, err := m.Update("a", Change{Every: &every, Keep: &db.Keep{Last: 2}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5*time.Minute + time.Second)
		synctest.Wait()
		if list, _ := m.Checkpoints("a"); len(list) != 2 || list[1].Seq != 5 {
			t.Fatalf("%+v", list)
		}
		if _, err := m.Remove(t.Context(), "a", true, false); !errors.Is(err, ErrState) {
			t.Fatalf("removed while it runs: %v", err)
		}
		if _, err := m.Remove(t.Context(), "a", true, true); err != nil {
			t.Fatal(err)
		}
		closeManager(t, m)
		m = w.open(t, dir, nil)
		defer closeManager(t, m)
		if got := m.List(0); len(got) != 0 {
			t.Fatalf("it is back: %+v", got)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "checkpoints", "jobs")); len(left) != 0 {
			t.Fatalf("left behind: %v", left)
		}
		// Without its checkpoints it does not come back either, and they stay.
		run(t, m, db.Spec{Name: "b"})
		if _, err := m.Dump(t.Context(), "b", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Remove(t.Context(), "b", false, true); err != nil {
			t.Fatal(err)
		}
		closeManager(t, m)
		m = w.open(t, dir, nil)
		defer closeManager(t, m)
		if got := m.List(0); len(got) != 0 {
			t.Fatalf("it is back: %+v", got)
		}
		if _, err := os.Stat(filepath.Join(dir, "checkpoints", "jobs", "b", "000001")); err != nil {
			t.Fatal(err)
		}
	})
}

func TestEventsAreFollowed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, dir string) {
		m := w.open(t, dir, nil)
		var got []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e, err := range m.Events(context.Background(), 0, true) {
				if err != nil {
					t.Error(err)
				}
				got = append(got, e.Kind)
			}
		}()
		run(t, m, db.Spec{Name: "a"})
		synctest.Wait()
		w.shimOf(m, "a").end(&db.Exit{Code: 2})
		synctest.Wait()
		closeManager(t, m)
		<-done
		if want := []string{EventCreated, EventStarted, EventExited}; !slices.Equal(got, want) {
			t.Fatalf("followed %v, want %v", got, want)
		}
	})
}
