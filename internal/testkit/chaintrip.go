package testkit

// ChainCheckpointer makes dumps that build on earlier ones.
type ChainCheckpointer interface {
	Checkpointer
	// PreDump copies the memory of the running tree into dir, an empty folder.
	PreDump(t T, pid int, dir, parent string) error
	// DumpOn is Dump on top of a parent. If the tree runs on, its writes are
	// tracked.
	DumpOn(t T, pid int, dir, parent string, needs Needs, kill bool) error
}

// ChainTrip takes a program of a kind through a chain: a pre-dump, two dumps
// beside which it goes on, and one with which it ends; the restores of the last
// one and, in its place, of the first; a dump that goes on from there, and its
// restore. The program proves its state at each step, and works between them.
func ChainTrip(t T, kind Kind, cp ChainCheckpointer) {
	t.Helper()
	p := kind.Start(t)
	p.Work(t)
	p.Prove(t)
	c := &chainTrip{trip: trip{kind: kind, p: p, cp: cp, pss: PSS(t, p.PID())}, chain: cp}
	defer func() {
		if t.Failed() {
			t.Logf("that was %s (pid %d)", c.stage, p.PID())
		}
	}()
	c.preDump(t)
	first, rewind := c.on(t, "a dump on top of the pre-dump", false)
	c.on(t, "a dump on top of a dump", false)
	last, _ := c.on(t, "a dump that ends it", true)
	c.stage = "the restore of the last of the chain"
	c.restore(t, last)
	c.goesOn(t)
	if kind.Forward || t.Failed() {
		return
	}
	c.stage = "the restore of the first in place of the last"
	Kill(t, p.PID())
	c.restore(t, first)
	rewind()
	c.goesOn(t)
	c.top = first
	branch, _ := c.on(t, "a dump that goes on from the first", true)
	c.stage = "the restore of the branch"
	c.restore(t, branch)
	c.goesOn(t)
}

type chainTrip struct {
	trip
	chain ChainCheckpointer
	top   string // the newest checkpoint, on which the next builds
}

func (c *chainTrip) preDump(t T) {
	t.Helper()
	c.stage = "a pre-dump"
	dir := folder(t)
	if err := c.chain.PreDump(t, c.p.PID(), dir, ""); err != nil {
		t.Fatalf("pre-dump: %v", err)
	}
	c.goesOn(t)
	c.top = dir
}

// on dumps on top of the newest checkpoint, which the new one becomes.
func (c *chainTrip) on(t T, stage string, kill bool) (dir string, rewind func()) {
	t.Helper()
	c.stage = stage
	dir, rewind = folder(t), c.p.Snapshot()
	Watch(c.p.PID())
	tree := Tree(c.p.PID())
	c.shape = Shape(c.p.PID())
	if err := c.chain.DumpOn(t, c.p.PID(), dir, c.top, c.kind.Needs, kill); err != nil {
		t.Fatalf("%s: %v", stage, err)
	}
	c.top = dir
	if kill {
		WaitGone(t, tree)
	} else {
		c.goesOn(t)
	}
	return dir, rewind
}
