package faults

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/keeper"
	"stasis/internal/testkit"
)

// link is a checkpoint of a chain, with what the program was like then.
type link struct {
	dir    string
	result *stasis.DumpResult
	rewind func()
}

// chained are dumps and pre-dumps of a scene that build on each other, in
// folders beside each other. Wrong pages show only where pages were written
// between any two of them, and others were not.
type chained struct {
	*scene
	room string // folder of the checkpoints
	made *int
}

func newChain(t *testing.T) *chained { t.Helper(); return newChainOf(t, features...) }

func newChainOf(t *testing.T, features ...string) *chained {
	t.Helper()
	c := &chained{scene: newSceneOf(t, features...), room: t.TempDir(), made: new(int)}
	c.tracked = true
	t.Cleanup(func() { _ = stasis.StopTracker(c.p.PID()) })
	return c
}

// within is the same chain for a part of the test. Its checkpoints stay until
// the end of the whole.
func (c *chained) within(t *testing.T) *chained {
	t.Helper()
	part := *c
	part.scene = c.in(t)
	part.look()
	return &part
}

// next is the folder of the next checkpoint, and what it will be like.
func (c *chained) next() *link {
	c.t.Helper()
	*c.made++
	c.writes(300)
	c.dir = filepath.Join(c.room, fmt.Sprint(*c.made))
	return &link{dir: c.dir, rewind: c.p.Snapshot()}
}

// writes waits until the program has written some pages more, of its 4096.
func (c *chained) writes(pages int64) {
	c.t.Helper()
	before := c.p.Note(c.t).Has["written"]
	within(c.t, "the program writes", func() error {
		if now := c.p.Note(c.t).Has["written"]; now < before+pages {
			return fmt.Errorf("%d of %d pages", now-before, pages)
		}
		return nil
	})
}

func parentOf(parent *link) string {
	if parent == nil {
		return ""
	}
	return parent.dir
}

// try dumps on a parent (nil: none); the tree runs on and is tracked.
func (c *chained) try(parent *link) (*link, error) {
	c.t.Helper()
	l := c.next()
	var err error
	l.result, err = stasis.Dump(context(), stasis.DumpOptions{
		PID: c.p.PID(), Dir: l.dir, Parent: parentOf(parent), Track: true, After: stasis.AfterRun, Streams: 2, CRIU: criuOptions,
	})
	return l, err
}

func (c *chained) on(parent *link) *link {
	c.t.Helper()
	l, err := c.try(parent)
	if err != nil {
		c.t.Fatalf("dump %s on %s: %v", l.dir, parentOf(parent), err)
	}
	return l
}

func (c *chained) preDump(parent *link) *link {
	c.t.Helper()
	l := c.next()
	var err error
	if l.result, err = stasis.PreDump(context(), stasis.PreDumpOptions{PID: c.p.PID(), Dir: l.dir, Parent: parentOf(parent), Streams: 2}); err != nil {
		c.t.Fatalf("pre-dump %s: %v", l.dir, err)
	}
	return l
}

// right wants a checkpoint to give the program back as it was.
func (c *chained) right(l *link) {
	c.t.Helper()
	testkit.Kill(c.t, c.p.PID())
	if _, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: l.dir}); err != nil {
		c.t.Fatalf("restore of %s: %v", l.dir, err)
	}
	l.rewind()
	c.look()
	c.unharmed()
}

// refuses wants an error that says all of these, and no harm.
func (c *chained) refuses(err, kind error, says ...string) {
	c.t.Helper()
	if err == nil {
		c.t.Fatal("it succeeded")
	}
	c.t.Logf("%v", err)
	wantKind, gotKind := outcomeOf(kind).Kind, outcomeOf(err).Kind
	if wantKind != gotKind {
		c.t.Errorf("the error is of kind %q, should be %q", gotKind, wantKind)
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			c.t.Errorf("the message does not say %q", part)
		}
	}
	c.unharmed()
}

// compared wants a dump to say that it compared all memory.
func (c *chained) compared(l *link, why string) {
	c.t.Helper()
	notes := strings.Join(l.result.Notes, "; ")
	c.t.Logf("notes: %s", notes)
	if !strings.Contains(notes, "all memory is compared") || !strings.Contains(notes, why) {
		c.t.Errorf("the notes do not say that all memory was compared, and %q", why)
	}
}

// relied wants a dump to have relied on its tracker.
func (c *chained) relied(l *link) {
	c.t.Helper()
	if len(l.result.Notes) > 0 {
		c.t.Errorf("unexpected notes: %q", l.result.Notes)
	}
}

// keeper finds the process that keeps the trackers of the tree.
func (c *chained) keeper() int {
	c.t.Helper()
	list, err := keeper.List()
	if err != nil {
		c.t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(k keeper.Info) bool { return k.Root == c.p.PID() })
	if i < 0 {
		c.t.Fatal("nobody tracks the program")
	}
	return list[i].Keeper
}

func (c *chained) signal(pid int, signal unix.Signal) {
	c.t.Helper()
	if err := unix.Kill(pid, signal); err != nil {
		c.t.Fatal(err)
	}
}

// copied wants a dump to say that it had no use for the tracker.
func (c *chained) copied(l *link) {
	c.t.Helper()
	if notes := strings.Join(l.result.Notes, "; "); !strings.Contains(notes, "all memory is copied") || !strings.Contains(notes, keeper.Name) {
		c.t.Errorf("the notes do not say that all memory was copied, and why: %s", notes)
	}
}
