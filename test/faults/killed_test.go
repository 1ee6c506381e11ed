// Package faults breaks dumps and restores on purpose, at each of their named
// steps: Stasis or CRIU is killed, the disk is full, the program ends or
// changes, the checkpoint is damaged. It has only tests. Each wants the same: the
// program lives or a whole checkpoint exists, the message says what happened,
// and nothing is left behind.
//
// Words: a worker is a Stasis in a process of its own, which waits at a point
// that the test has chosen; a scene is a program that proves its memory,
// together with the folder of its checkpoint.
//
// The tests work on the machine as a whole and run one after the other.
package faults

import (
	"fmt"
	"testing"

	"stasis"
	"stasis/internal/testkit"
)

var dumpSteps = []string{
	string(stasis.StepPrepare), string(stasis.StepArm), string(stasis.StepCopy), pointCopying, string(stasis.StepFreeze),
	string(stasis.StepState), string(stasis.StepWrite), string(stasis.StepPublish), string(stasis.StepEnd),
}

// dumpsToBreak are the kinds of dump, with the points at which each is broken.
var dumpsToBreak = []struct {
	engine stasis.Engine
	after  stasis.After
	points []string
}{
	{stasis.EngineBlind, stasis.AfterKill, dumpSteps},
	{stasis.EngineBlind, stasis.AfterRun, dumpSteps[:8]}, // it has no end
	{stasis.EngineBlind, stasis.AfterStop, dumpSteps[4:]},
	{stasis.EngineLazyPages, stasis.AfterKill, dumpSteps[4:]},
	{stasis.EngineLazyPages, stasis.AfterStop, dumpSteps[5:]},
	{stasis.EngineCRIU, stasis.AfterKill, dumpSteps[4:]},
}

// TestStasisKilledInADump: the tree lives on, and the checkpoint is whole or
// not there.
func TestStasisKilledInADump(t *testing.T) {
	for _, d := range dumpsToBreak {
		t.Run(fmt.Sprintf("%s/%s", d.engine, d.after), func(t *testing.T) {
			s := newScene(t)
			var last *worker
			for _, point := range d.points {
				t.Run(point, func(t *testing.T) {
					s := s.in(t)
					s.look() // the one before may have been restored
					s.newDir()
					rewind := s.p.Snapshot()
					w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: d.after, Engine: d.engine, Wait: []string{point}})
					w.reach(point)
					w.kill()
					s.nothingLeft(w)
					s.unharmed()
					exists := s.checkpoint()
					if want := point == string(stasis.StepEnd); exists != want {
						t.Errorf("a checkpoint exists: %t, should be %t", exists, want)
					}
					if exists && !t.Failed() {
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
			s.restore(false)
			s.swept(last)
		})
	}
}

// restoreInstead ends the tree, which has gone on, and restores it from the
// checkpoint.
func (s *scene) restoreInstead(rewind func()) {
	s.t.Helper()
	testkit.Kill(s.t, s.p.PID())
	rewind()
	s.restore(false)
}

// TestStasisKilledInARestore: no process of the tree is left, and the next
// restore finds nothing in its way.
func TestStasisKilledInARestore(t *testing.T) {
	steps := []string{string(stasis.StepOpen), string(stasis.StepCheck), string(stasis.StepUnpack), string(stasis.StepRestore)}
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lazy=%t", lazy), func(t *testing.T) {
			s := newScene(t)
			s.dump(stasis.AfterKill)
			s.gone()
			points := append(steps, string(stasis.StepFill), pointFilling, pointResumed)
			for _, point := range points {
				t.Run(point, func(t *testing.T) {
					s := s.in(t)
					w := start(t, plan{Restore: true, Dir: s.dir, Lazy: lazy, Wait: []string{point}})
					w.reach(point)
					w.kill()
					s.gone()
					s.nothingLeft(w)
					if !s.checkpoint() {
						t.Error("the checkpoint is gone")
					}
				})
			}
			if !t.Failed() {
				s.restore(lazy)
			}
		})
	}
}
