package jobs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"stasis"
	"stasis/internal/catalog/catalogtest"
	"stasis/internal/jobs/db"
)

// A daemon that is stopped while a job is being restored leaves that to the shim. The next one waits for it: the job that comes of it is
// the job, and nobody restores it once more.
func TestNextManagerWaitsForARestore(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartOnFailure})
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		w.restoring = make(chan struct{})
		w.shimOf(m, "a").end(&db.Exit{Code: 1})
		synctest.Wait()
		if got := get(t, m, "a"); got.State != db.StateRestoring {
			t.Fatalf("it is %s", got.State)
		}
		closeManager(t, m)
		m = w.open(t, dir, nil)
		defer closeManager(t, m)
		pass(time.Hour)
		synctest.Wait()
		if got := get(t, m, "a"); got.State != db.StateRestoring {
			t.Fatalf("while the shim is about it, it is %s", got.State)
		}
		close(w.restoring)
		pass(time.Minute)
		synctest.Wait()
		got, s := get(t, m, "a"), w.shimOf(m, "a")
		if got.State != db.StateRunning || got.PID != s.now.PID || !slices.Equal(s.restored, []string{"000001"}) {
			t.Fatalf("it is %s as process %d; %v was restored as process %d", got.State, got.PID, s.restored, s.now.PID)
		}
		if said := events(t, m, EventRestoreFailed, EventExited); len(said) != 1 { // its end before
			t.Fatalf("said: %+v", said)
		}
	})
}

// A daemon that is killed when a checkpoint has just been published, and not noted yet, loses nothing that belongs to it: neither the
// files, which are on the disk by then, nor how the terminal was.
func TestKilledAfterPublishing(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		data := filepath.Join(dir, "data")
		write(t, data, "A")
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", WithFiles: []string{data}})
		left := filepath.Join(dir, "left")
		w.published = func(at string) {
			catalogtest.Make(t, at, catalogtest.Options{})
			if err := os.CopyFS(filepath.Join(left, "checkpoints"), os.DirFS(filepath.Join(dir, "checkpoints"))); err != nil {
				t.Error(err)
			}
		}
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		w.published = nil

		after := newWorld()
		after.t = t
		found := after.open(t, left, nil)
		defer closeManager(t, found)
		list, err := found.Checkpoints("a")
		if err != nil || len(list) != 1 || len(list[0].ID) != 32 || !slices.Equal(list[0].Files, []string{data}) || list[0].PauseUS != 1500 {
			t.Fatalf("known afterwards: %+v, %v", list, err)
		}
		write(t, data, "B")
		if _, err := found.Restore(t.Context(), "a", RestoreRequest{}); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(data); err != nil || string(text) != "A" {
			t.Errorf("the file has %q, %v", text, err)
		}
	})
}

// A dump that fails leaves nothing beside the checkpoint that it did not make.
func TestFailedDumpLeavesNothing(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		data := filepath.Join(dir, "data")
		write(t, data, "A")
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", WithFiles: []string{data}})
		folder := filepath.Join(dir, "checkpoints", "jobs", "a")
		if err := os.MkdirAll(filepath.Join(folder, "000001"), 0o700); err != nil { // the fake can't make it then
			t.Fatal(err)
		}
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err == nil {
			t.Fatal("it succeeded")
		}
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "000001" && e.Name() != identityName {
				t.Errorf("%s is left", e.Name())
			}
		}
	})
}

// A parent that turns out to be damaged while a dump compares with it ends the chain, and not the checkpoints of the job.
func TestDamagedParentBeginsANewChain(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a"})
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		w.dumpO = func(o stasis.DumpOptions) error {
			if o.Parent != "" {
				return errors.Join(stasis.ErrDamaged, errors.New("the parent: a flipped bit"))
			}
			return nil
		}
		d, err := m.Dump(t.Context(), "a", DumpRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Result.Notes) != 1 || !strings.Contains(d.Result.Notes[0], "new chain") || !strings.Contains(d.Result.Notes[0], "a flipped bit") {
			t.Errorf("notes: %v", d.Result.Notes)
		}
	})
}

// A cron line follows the clock of the machine, which may be set, or go on while the machine sleeps and no timer does.
func TestClockIsSet(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		var ahead time.Duration // of the clock, changed while nothing runs
		m := w.open(t, dir, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(ahead).Round(0) } })
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Cron: "0 12 * * *"})
		next := get(t, m, "a").Next
		made := func() int {
			synctest.Wait()
			list, err := m.Checkpoints("a")
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		synctest.Wait()
		ahead = time.Until(next) - 10*time.Second // it is nearly noon now
		if pass(5 * time.Second); made() != 0 {
			t.Fatal("it was dumped too early")
		}
		if pass(time.Minute); made() != 1 {
			t.Fatal("it was not dumped at noon")
		}
		ahead -= 2 * time.Hour // and now it is ten
		if pass(time.Hour); made() != 1 {
			t.Fatal("it was dumped at eleven, of the same day")
		}
		if pass(25*time.Hour + 5*time.Minute); made() != 2 {
			t.Fatal("it was not dumped at noon of the next day")
		}
	})
}

// Who gives up a request does not take the job's restart with it.
func TestKillGivenUp(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "a", Restart: db.RestartOnFailure, RestartDelay: time.Minute})
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		w.bad["000001"] = errors.New("a pid is taken")
		w.shimOf(m, "a").end(&db.Exit{Code: 1})
		pass(10*time.Second + time.Millisecond) // after the first attempt, before the second
		synctest.Wait()
		if got := get(t, m, "a"); got.State != db.StateBackoff {
			t.Fatalf("it is %s", got.State)
		}
		delete(w.bad, "000001")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.Kill(ctx, "a", syscall.SIGTERM, false); !errors.Is(err, context.Canceled) {
			t.Fatalf("a request that was given up: %v", err)
		}
		pass(10 * time.Minute)
		synctest.Wait()
		if got := get(t, m, "a"); got.State != db.StateRunning || got.Restores != 1 {
			t.Fatalf("it is %s after %d restores", got.State, got.Restores)
		}
	})
}

// Only what runs, or would again, can be killed: how a job has ended is not written over.
func TestKillOfWhatDoesNotRun(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "done"})
		w.shimOf(m, "done").end(&db.Exit{})
		synctest.Wait()
		if _, err := m.Kill(t.Context(), "done", syscall.SIGTERM, false); !errors.Is(err, ErrState) {
			t.Errorf("killed: %v", err)
		}
		if got := get(t, m, "done"); got.State != db.StateDone {
			t.Errorf("it is %s", got.State)
		}
		run(t, m, db.Spec{Name: "waiting", Restart: db.RestartOnFailure, RestartDelay: time.Hour})
		if _, err := m.Dump(t.Context(), "waiting", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		w.bad["000001"] = errors.New("a pid is taken")
		w.shimOf(m, "waiting").end(&db.Exit{Code: 1})
		synctest.Wait()
		if got, err := m.Kill(t.Context(), "waiting", syscall.SIGTERM, false); err != nil || got.State != db.StateKilled {
			t.Errorf("one that waits to be brought back: %s, %v", got.State, err)
		}
		pass(3 * time.Hour)
		synctest.Wait()
		if got := get(t, m, "waiting"); got.State != db.StateKilled {
			t.Errorf("hours later it is %s", got.State)
		}
	})
}

func TestDelay(t *testing.T) {
	for _, c := range []struct {
		first    time.Duration
		failures int
		want     time.Duration
	}{
		{time.Second, 0, 0}, {time.Second, 1, time.Second}, {time.Second, 4, 8 * time.Second}, {time.Second, 10, maxDelay}, {time.Second, 1 << 20, maxDelay},
		{time.Hour, 1, time.Hour}, {time.Hour, 9, time.Hour}, {300 * 24 * time.Hour, 30, 300 * 24 * time.Hour},
	} {
		if got := delay(c.first, c.failures); got != c.want {
			t.Errorf("%v, after %d failures: %v, want %v", c.first, c.failures, got, c.want)
		}
	}
}

// The checkpoints of a job that was removed may stay: the next job of the same command gets another name by itself.
func TestNamesOfKeptCheckpointsAreTaken(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		for _, want := range []string{"count", "count-2"} {
			if got := run(t, m, db.Spec{}); got.Spec.Name != want {
				t.Fatalf("the job is called %s, not %s", got.Spec.Name, want)
			}
			if _, err := m.Dump(t.Context(), want, DumpRequest{}); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Remove(t.Context(), want, false, true); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A folder may have a name that is a pattern elsewhere.
func TestJobsAreFoundInAFolderWithAnyName(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		odd := func(o *Options) { o.Checkpoints = filepath.Join(dir, "c[1-2]*") }
		m := w.open(t, dir, odd)
		run(t, m, db.Spec{Name: "a"})
		if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
			t.Fatal(err)
		}
		closeManager(t, m)
		if err := os.Remove(filepath.Join(dir, "state.db")); err != nil {
			t.Fatal(err)
		}
		m = w.open(t, dir, odd)
		defer closeManager(t, m)
		if got := get(t, m, "a"); got.State != db.StateRunning || got.Checkpoints != 1 {
			t.Fatalf("found: %+v", got)
		}
	})
}

// A user cannot have root's processes started without end; what one user has is not taken from another.
func TestJobsOfOneUser(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, func(o *Options) { o.MaxJobs = 3 })
		defer closeManager(t, m)
		for range 3 {
			if _, err := m.Run(t.Context(), db.Spec{Argv: []string{"count"}}, 1000); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.Run(t.Context(), db.Spec{Argv: []string{"count"}}, 1000); !errors.Is(err, ErrTooMany) {
			t.Errorf("one more: %v", err)
		}
		for _, other := range []uint32{0, 1001} {
			if _, err := m.Run(t.Context(), db.Spec{Argv: []string{"count"}}, other); err != nil {
				t.Errorf("user %d: %v", other, err)
			}
		}
	})
}
