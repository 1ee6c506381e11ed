package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"stasis"
	"stasis/internal/jobs/db"
)

// Whatever becomes of the database, the jobs are known again from beside their checkpoints.
func TestDatabaseIsMadeAnew(t *testing.T) {
	for _, damage := range []string{"gone", "garbage"} {
		t.Run(damage, func(t *testing.T) {
			inBubble(t, func(w *world, dir string) {
				t := w.t
				m := w.open(t, dir, nil)
				run(t, m, db.Spec{Name: "a", Every: time.Minute, Keep: db.Keep{Last: 3}, Restart: db.RestartOnFailure})
				run(t, m, db.Spec{Name: "lost", Every: time.Minute, Restart: db.RestartOnFailure})
				other, err := m.Run(t.Context(), db.Spec{Name: "b", Argv: []string{"x"}, Every: time.Minute}, 1000)
				if err != nil {
					t.Fatal(err)
				}
				pass(5*time.Minute + time.Second)
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
				pass(time.Minute)
				synctest.Wait()
				if list, _ := m.Checkpoints("a"); list[len(list)-1].Seq != 6 {
					t.Fatalf("it does not go on: %+v", list)
				}
			})
		})
	}
}

func TestStopMakesCheckpoints(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
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

// A job must not outlive its last checkpoint when the machine goes down: what it writes to its files after it would be in the way of a restore.
func TestShutdownEndsJobs(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, func(o *Options) { o.DumpOnStop, o.GoingDown = true, func() bool { return true } })
		policies := map[string]db.Restart{"a": db.RestartAlways, "f": db.RestartOnFailure, "n": db.RestartNever}
		for name, policy := range policies {
			run(t, m, db.Spec{Name: name, Restart: policy})
		}
		closeManager(t, m)
		for name := range policies {
			if w.shimOf(m, name).now.Running {
				t.Errorf("job %s runs on", name)
			}
		}
		m = w.open(t, dir, nil)
		defer closeManager(t, m)
		synctest.Wait()
		for name, policy := range policies {
			info := get(t, m, name)
			if info.Last == nil || info.Last.Reason != ReasonShutdown {
				t.Fatalf("its checkpoint: %+v", info)
			}
			want, restores := db.StateRunning, 1
			if policy == db.RestartNever {
				want, restores = db.StateSuspended, 0
			}
			if info.State != want || info.Restores != restores || info.Failures > 1 {
				t.Errorf("job %s is %s after %d restores and %d attempts, want %s after %d", name, info.State, info.Restores, info.Failures, want, restores)
			}
		}
	})
}

// A job that cannot be dumped runs on until the machine ends it.
func TestShutdownWithoutACheckpoint(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, func(o *Options) { o.DumpOnStop, o.GoingDown = true, func() bool { return true } })
		run(t, m, db.Spec{Name: "a", Restart: db.RestartOnFailure})
		w.fail = func(int) error { return stasis.ErrProcess }
		closeManager(t, m)
		if s := w.shimOf(m, "a"); !s.now.Running {
			t.Fatal("it was ended, and nothing of it was saved")
		}
	})
}

func TestBadSpecsAreSaid(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
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
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		run(t, m, db.Spec{Name: "a", Every: time.Hour})
		every := time.Minute
		if _, err := m.Update("a", Change{Every: &every, Keep: &db.Keep{Last: 2}}); err != nil {
			t.Fatal(err)
		}
		pass(5*time.Minute + time.Second)
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
	inBubble(t, func(w *world, dir string) {
		t := w.t
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

// What a crash leaves half done is put right at the next start: a checkpoint that was published but not written down yet, one that
// somebody has deleted, and copies of files for one that never came to be.
func TestFolderAndDatabaseAgreeAgain(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
		m := w.open(t, dir, nil)
		run(t, m, db.Spec{Name: "a"})
		for range 3 {
			if _, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		folder := filepath.Join(dir, "checkpoints", "jobs", "a")
		if err := m.db.DeleteCheckpoints("a", 3); err != nil { // as if it had never been written
			t.Fatal(err)
		}
		closeManager(t, m)
		if err := os.RemoveAll(filepath.Join(folder, "000002")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(folder, "000004.files"), 0o700); err != nil {
			t.Fatal(err)
		}
		m = w.open(t, dir, nil)
		defer closeManager(t, m)
		list, err := m.Checkpoints("a")
		if err != nil || len(list) != 2 || list[0].Seq != 1 || list[1].Seq != 3 || list[1].ID == "" {
			t.Fatalf("%+v, %v", list, err)
		}
		if _, err := os.Stat(filepath.Join(folder, "000004.files")); !os.IsNotExist(err) {
			t.Fatalf("copies of files stay: %v", err)
		}
		if d, err := m.Dump(t.Context(), "a", DumpRequest{}); err != nil || d.Seq != 4 {
			t.Fatalf("the next is %+v, %v", d, err)
		}
	})
}
