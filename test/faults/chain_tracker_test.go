package faults

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
)

// What a tracker knows is of use for one parent only, and only while nothing
// happened to it. Each of these dumps has to notice when it is not.

// TestTrackerOfAnotherParent: the tracker was armed for a later checkpoint, an
// earlier one, or one of another branch.
func TestTrackerOfAnotherParent(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	second := c.on(first)
	c.relied(second)
	branch := c.on(first) // the tracker has forgotten what was written before the second
	c.compared(branch, "not the parent")
	third := c.on(second)
	c.compared(third, "not the parent")
	fourth := c.on(third)
	c.relied(fourth)
	whole := c.on(nil) // what is tracked is of no use
	for _, l := range []*link{branch, third, fourth, whole, second, first} {
		c.right(l)
	}
}

// TestDumpFailsAfterItsFirstRound: the rounds have protected pages anew, so the
// next dump on the old parent must not believe the tracker.
func TestDumpFailsAfterItsFirstRound(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	for _, step := range []stasis.Step{stasis.StepFreeze, stasis.StepPublish} {
		t.Run(string(step), func(t *testing.T) {
			c := c.within(t)
			second := c.on(first)
			failed := c.next()
			broken := errors.New("broken on purpose")
			_, err := stasis.Dump(context(), stasis.DumpOptions{
				PID: c.p.PID(), Dir: failed.dir, Parent: second.dir, Track: true, After: stasis.AfterRun, CRIU: criuOptions,
				AtStep: func(at stasis.Step) error {
					if at == step {
						return broken
					}
					return nil
				},
			})
			if !errors.Is(err, broken) {
				t.Fatal(err)
			}
			c.unharmed()
			third := c.on(second)
			c.compared(third, "no tracker was kept")
			fourth := c.on(third)
			c.relied(fourth)
			c.right(third)
			c.right(fourth)
		})
	}
}

// TestTrackerKilled, or ended by an order, before the dump that would use it.
func TestTrackerKilled(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	c.signal(c.keeper(), unix.SIGKILL)
	second := c.on(first)
	c.compared(second, "no tracker was kept")
	if err := stasis.StopTracker(c.p.PID()); err != nil {
		t.Fatal(err)
	}
	third := c.on(second)
	c.compared(third, "no tracker was kept")
	c.right(second)
	c.right(third)
}
