package testkit

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// shapeWithin is how long a restored tree may take to look as it did.
const shapeWithin = 5 * time.Second

// RoundTrip starts a program of a kind and takes it through everything that a
// checkpoint can do to it: a dump beside which it goes on; its death and the
// restore from that dump, although it had gone on; a dump of what was restored,
// with which it ends; and a restore from that. It proves its state at each step,
// and works between them.
func RoundTrip(t T, kind Kind, cp Checkpointer) {
	t.Helper()
	p := kind.Start(t)
	p.Work(t)
	p.Prove(t)
	if kind.Refused != "" {
		refuse(t, kind, p, cp)
		return
	}
	r := &trip{kind: kind, p: p, cp: cp, pss: PSS(t, p.PID())}
	defer func() {
		if t.Failed() {
			t.Logf("that was %s (pid %d)", r.stage, p.PID())
		}
	}()

	r.stage = "a dump that leaves it running"
	dir, rewind := folder(t), p.Snapshot()
	r.dump(t, dir, false)
	r.goesOn(t)
	if !kind.Forward && !t.Failed() {
		r.stage = "a restore from the dump that left it running"
		Kill(t, p.PID())
		r.restore(t, dir)
		rewind()
		r.goesOn(t)
	}
	if t.Failed() {
		return
	}
	r.stage = "a dump that ends it"
	dir = folder(t)
	r.dump(t, dir, true)
	r.stage = "the restore from the dump that ended it"
	r.restore(t, dir)
	r.goesOn(t)
}

// trip is a round trip under way.
type trip struct {
	kind  Kind
	p     Program
	cp    Checkpointer
	stage string // what is under way
	pss   int    // KiB, at the start
	shape string // of the tree at the last dump
}

func (r *trip) dump(t T, dir string, kill bool) {
	t.Helper()
	Watch(r.p.PID())
	tree := Tree(r.p.PID())
	r.shape = Shape(r.p.PID())
	if err := r.cp.Dump(t, r.p.PID(), dir, r.kind.Needs, kill); err != nil {
		t.Fatalf("dump (kill: %v): %v", kill, err)
	}
	if kill {
		WaitGone(t, tree)
	}
}

func (r *trip) restore(t T, dir string) {
	t.Helper()
	if err := r.cp.Restore(t, dir, r.kind.Needs); err != nil {
		t.Fatalf("restore: %v", err)
	}
	if err := alive(r.p.PID()); err != nil {
		t.Fatalf("after the restore: %v", err)
	}
	Watch(r.p.PID())
	if r.kind.Changing {
		return
	}
	// A child that was stopped runs for a moment until it stops.
	wait(t, shapeWithin, "the tree's old shape", func() error {
		if shape := Shape(r.p.PID()); shape != r.shape {
			return fmt.Errorf("the restored tree is\n%swas\n%s", shape, r.shape)
		}
		return nil
	})
}

// goesOn proves that all is there, that the program goes on, and that all is
// there still.
func (r *trip) goesOn(t T) {
	t.Helper()
	r.p.Prove(t)
	r.p.Work(t)
	r.p.Prove(t)
	if pss := PSS(t, r.p.PID()); r.kind.Shares && pss > r.pss*11/10 {
		t.Errorf("the tree uses %d KiB together, used %d KiB: it does not share its memory any more", pss, r.pss)
	}
}

// refuse wants a dump to fail with a reason, and to leave the program unharmed.
func refuse(t T, kind Kind, p Program, cp Checkpointer) {
	t.Helper()
	dir := folder(t)
	err := cp.Dump(t, p.PID(), dir, kind.Needs, true)
	if err == nil {
		t.Fatalf("the dump succeeded, should be refused because of %s", kind.Refused)
	}
	if !isStock(cp) && !strings.Contains(err.Error(), kind.Refused) {
		t.Errorf("the refusal does not name %s: %v", kind.Refused, err)
	}
	p.Prove(t)
	p.Work(t)
	if left, _ := os.ReadDir(dir); len(left) > 0 && !isStock(cp) {
		t.Errorf("the refused dump left %d files behind", len(left))
	}
}

func isStock(cp Checkpointer) bool { _, stock := cp.(stockCRIU); return stock }
