package jobs

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"stasis"
	"stasis/internal/jobs/db"
)

// inBubble runs a test in accelerated time: the clock jumps to the next timer when nothing else is to be done.
func inBubble(t *testing.T, test func(w *world, dir string)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.t = t
		test(w, dir)
	})
}

// pass lets time pass in a bubble.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // it takes no time, and what is due in it has happened after synctest.Wait
}

func TestAnHourOfSchedule(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
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
		pass(time.Hour + 30*time.Second)
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
	inBubble(t, func(w *world, dir string) {
		t := w.t
		w.takes = 25 * time.Second
		m := w.open(t, dir, nil)
		defer closeManager(t, m)
		run(t, m, db.Spec{Name: "slow", Every: 10 * time.Second})
		pass(10 * time.Minute)
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
	inBubble(t, func(w *world, dir string) {
		t := w.t
		w.takes = 100 * time.Millisecond
		m := w.open(t, dir, func(o *Options) { o.Parallel = 4 })
		for i := range 200 {
			run(t, m, db.Spec{Name: fmt.Sprintf("job-%d", i), Every: time.Minute, Keep: db.Keep{Last: 2}, Restart: db.RestartOnFailure})
		}
		pass(3*time.Minute + 30*time.Second)
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
		pass(time.Second)
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

func TestEvacuate(t *testing.T) {
	inBubble(t, func(w *world, dir string) {
		t := w.t
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
