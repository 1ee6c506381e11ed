package faults

import (
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
)

// TestStasisKilledInAChainedDump: the tree lives on, and the next dump on the
// same parent is right, whatever the one that was killed had protected.
func TestStasisKilledInAChainedDump(t *testing.T) {
	c := newChain(t)
	var tested []*link
	for _, test := range []struct {
		name   string
		points []string
		plan   plan
	}{
		{"dump", []string{"arm", pointCopying, "freeze", "state", "publish"}, plan{After: stasis.AfterRun, Track: true}},
		{"pre-dump", []string{"arm", pointCopying, "publish"}, plan{PreDump: true}},
	} {
		parent := c.on(nil)
		for _, point := range test.points {
			t.Run(test.name+"/"+point, func(t *testing.T) {
				c := c.within(t)
				p := test.plan
				p.PID, p.Dir, p.Parent, p.Wait = c.p.PID(), c.next().dir, parent.dir, []string{point}
				w := start(t, p)
				w.reach(point)
				w.kill()
				c.nothingLeft(w)
				c.unharmed()
				if c.checkpoint() {
					t.Error("there is a checkpoint")
				}
				next := c.on(parent)
				tested = append(tested, next)
				parent = next
			})
		}
	}
	for _, l := range tested {
		if !t.Failed() {
			c.right(l)
		}
	}
}

// TestTrackerKilledInADump, or stopped: the dump has descriptors of its own.
func TestTrackerKilledInADump(t *testing.T) {
	c := newChain(t)
	top := c.on(nil)
	for _, point := range []string{"arm", pointCopying, "write"} {
		t.Run(point, func(t *testing.T) {
			c := c.within(t)
			l := c.next()
			w := start(t, plan{PID: c.p.PID(), Dir: l.dir, Parent: top.dir, Track: true, After: stasis.AfterRun, Wait: []string{point}})
			w.reach(point)
			c.signal(c.keeper(), unix.SIGKILL)
			w.goOn()
			if o := w.end(); o.Err != "" {
				t.Fatal(o.Err)
			}
			top = c.on(l)
			c.relied(top)
			tested := []*link{l, top}
			for _, l := range tested {
				c.right(l)
			}
			top = c.on(top)
		})
	}
}

// TestTrackerStopped: it does not answer, and still guards the memory.
func TestTrackerStopped(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	second := c.on(first)
	keeper := c.keeper()
	c.signal(keeper, unix.SIGSTOP)
	t.Cleanup(func() { _ = unix.Kill(keeper, unix.SIGKILL) })
	branch := c.on(first)
	c.copied(branch)
	c.signal(keeper, unix.SIGCONT)
	third := c.on(second) // whatever the tracker says by now
	fourth := c.on(branch)
	for _, l := range []*link{branch, third, fourth} {
		c.right(l)
	}
}
