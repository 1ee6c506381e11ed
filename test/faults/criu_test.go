package faults

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
)

// TestCRIUKilledInADump: CRIU dies while Stasis works at a notification. The
// kernel lets the tree go with it, so no such dump may end the tree: it has
// gone on since the checkpoint.
func TestCRIUKilledInADump(t *testing.T) {
	for _, d := range []struct {
		engine stasis.Engine
		after  stasis.After
		points []string
	}{
		{stasis.EngineBlind, stasis.AfterKill, dumpSteps[1:]},
		{stasis.EngineBlind, stasis.AfterRun, dumpSteps[4:6]}, // later it has ended
		{stasis.EngineBlind, stasis.AfterStop, dumpSteps[5:]},
		{stasis.EngineLazyPages, stasis.AfterKill, dumpSteps[4:6]},
		{stasis.EngineLazyPages, stasis.AfterStop, dumpSteps[8:]},
		{stasis.EngineCRIU, stasis.AfterKill, dumpSteps[5:6]},
	} {
		t.Run(fmt.Sprintf("%s/%s", d.engine, d.after), func(t *testing.T) {
			s := newScene(t)
			for _, point := range d.points {
				t.Run(point, func(t *testing.T) {
					s := s.in(t)
					s.newDir()
					w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: d.after, Engine: d.engine, Wait: []string{point}})
					w.reach(point)
					w.killCRIU()
					w.goOn()
					o := w.end()
					if !strings.Contains(o.Err, "somebody ended CRIU (signal: killed)") {
						t.Errorf("the message does not say how CRIU ended: %q", o.Err)
					}
					s.nothingLeft(w)
					s.swept(w)
					s.unharmed()
					exists := s.checkpoint()
					if want := point == string(stasis.StepEnd); exists != want {
						t.Errorf("a checkpoint exists: %t, should be %t", exists, want)
					}
				})
			}
			if !t.Failed() {
				s.newDir()
				s.dump(stasis.AfterKill)
				s.restore(false)
			}
		})
	}
}

// TestCRIUCrashes: the message tells that from a CRIU that somebody ended, and
// the program goes on.
func TestCRIUCrashes(t *testing.T) {
	s := newScene(t)
	for _, signal := range []unix.Signal{unix.SIGABRT, unix.SIGSEGV} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			s := s.in(t)
			s.newDir()
			w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterKill, Wait: []string{"state"}})
			w.reach("state")
			w.endCRIU(signal)
			w.goOn()
			o := w.end()
			for _, part := range []string{"CRIU itself has crashed (signal: ", `its log: "`, "try again"} {
				if !strings.Contains(o.Err, part) {
					t.Errorf("the message does not say %q: %s", part, o.Err)
				}
			}
			if strings.Contains(o.Err, `its log: ""`) || strings.Contains(o.Err, "somebody ended") {
				t.Errorf("the message says nothing of CRIU's log, or blames somebody: %s", o.Err)
			}
			s.nothingLeft(w)
			s.swept(w)
			s.unharmed()
			if s.checkpoint() {
				t.Error("there is a checkpoint")
			}
		})
	}
}

// TestCRIUKilledInARestore: nothing of the tree is left.
func TestCRIUKilledInARestore(t *testing.T) {
	s := newScene(t)
	s.dump(stasis.AfterKill)
	s.gone()
	for _, point := range []string{string(stasis.StepFill), pointFilling} {
		t.Run(point, func(t *testing.T) {
			s := s.in(t)
			w := start(t, plan{Restore: true, Dir: s.dir, Wait: []string{point}})
			w.reach(point)
			w.killCRIU()
			w.goOn()
			o := w.end()
			if !strings.Contains(o.Err, "somebody ended CRIU (signal: killed)") {
				t.Errorf("the message does not say how CRIU ended: %q", o.Err)
			}
			s.gone()
			s.nothingLeft(w)
			s.swept(w)
		})
	}
	if !t.Failed() {
		s.restore(false)
	}
}
