package faults

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/proc"
	"stasis/internal/testkit"
)

// moments is how often a dump and a restore are killed at a moment of no
// step's. More of them find rarer things.
var moments = flag.Int("moments", 16, "how often a dump and a restore are killed where no step begins")

// TestStasisKilledAtAnyMoment: not only where a step begins.
func TestStasisKilledAtAnyMoment(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	s := newScene(t)
	var last *worker
	for n := range *moments {
		// Half of them while the trackers are armed.
		limit := []time.Duration{10 * time.Millisecond, 200 * time.Millisecond}[n%2]
		after := time.Duration(random.Int64N(int64(limit)))
		t.Run(fmt.Sprintf("dump/%d-%v", n, after.Round(time.Millisecond)), func(t *testing.T) {
			s := s.in(t)
			s.look() // a dump that was killed too late was restored
			s.newDir()
			rewind := s.p.Snapshot()
			w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterRun, Wait: []string{"arm"}})
			w.reach("arm")
			w.goOn()
			<-time.After(after) // the moment of chance
			w.kill()
			s.nothingLeft(w)
			s.unharmed()
			if exists := s.checkpoint(); exists {
				s.restoreInstead(rewind)
			}
			last = w
		})
	}
	if t.Failed() {
		return
	}
	s.look()
	s.newDir()
	s.dump(stasis.AfterKill)
	s.gone()
	s.swept(last)
	s.restore(false)
}

// TestStasisKilledAtAnyMomentOfARestore: all of the tree is there then, or
// nothing, and nothing is in the way of the next restore. The moments are counted
// by what CRIU has written to its log, so that they are spread over the restore on
// any machine.
func TestStasisKilledAtAnyMomentOfARestore(t *testing.T) {
	s := newSceneOf(t, append(features, "deleted", "churn:threads=2,rate=500")...)
	size := len(s.tree)
	s.dump(stasis.AfterKill)
	s.gone()
	whole := s.logOfARestore()
	for n := range *moments {
		at := len(whole) * n / max(1, *moments-1)
		t.Run(fmt.Sprintf("restore/%d", n), func(t *testing.T) {
			s := s.in(t)
			w := start(t, plan{Restore: true, Dir: s.dir, Lazy: n%2 == 1, Track: n%4 == 0, Verbose: true, Wait: []string{"restore"}})
			w.reach("restore")
			w.goOn()
			eventually(func() bool { return len(w.log()) >= at || w.ended() })
			if n%3 == 0 { // CRIU goes as far as it can before it can notice
				w.stop()
				before := ""
				eventually(func() bool { now := w.log(); same := now == before; before = now; return same })
			}
			w.kill()
			s.nothingLeft(w)
			if s.wholeOrGone(size) {
				s.provesItself()
			}
		})
	}
	if !t.Failed() {
		s.restore(false)
	}
}

// logOfARestore restores the tree, with all that CRIU says of it, and ends it again.
func (s *scene) logOfARestore() string {
	s.t.Helper()
	w := start(s.t, plan{Restore: true, Dir: s.dir, Verbose: true, Wait: []string{"restore", pointResumed}})
	w.reach("restore")
	w.goOn()
	w.reach(pointResumed)
	log := w.log()
	w.kill()
	s.nothingLeft(w)
	s.gone()
	if strings.Count(log, "\n") < 100 {
		s.t.Fatalf("CRIU's log has %d lines only", strings.Count(log, "\n"))
	}
	return log
}

// provesItself wants the tree to be right, and ends it: the next restore is from
// the same checkpoint.
func (s *scene) provesItself() {
	s.t.Helper()
	rewind := s.p.Snapshot()
	s.look()
	s.unharmed()
	testkit.Kill(s.t, s.p.PID())
	rewind()
}

// wholeOrGone waits until either all of the tree runs, which it reports, or
// nothing of it is left. Processes that were half restored end by themselves.
func (s *scene) wholeOrGone(size int) (whole bool) {
	s.t.Helper()
	within(s.t, "a whole tree, or none", func() error {
		whole = false
		testkit.Watch(s.p.PID()) // which lets dead ones go
		tree, err := proc.Tree(s.p.PID())
		if errors.Is(err, proc.ErrGone) {
			for _, id := range s.tree {
				_, _ = unix.Wait4(id.pid, nil, unix.WNOHANG, nil)
				if task, err := proc.ReadTask(id.pid); err == nil {
					return fmt.Errorf("process %d (%s) is there, in state %c", id.pid, task.Comm, task.State)
				}
			}
			return nil
		}
		if err != nil {
			return err
		}
		if len(tree) != size {
			return fmt.Errorf("%d of %d processes are there", len(tree), size)
		}
		for _, task := range tree {
			if task.Comm != "subject" {
				return fmt.Errorf("process %d is %s", task.PID, task.Comm)
			}
			if err := free(identity{task.PID, task.StartTime}); err != nil {
				return err
			}
		}
		whole = true
		return nil
	})
	return whole
}
