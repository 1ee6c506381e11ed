package faults

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stasis"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/store"
)

// away moves a checkpoint to where nobody looks for it, and returns what moves
// it back.
func (c *chained) away(l *link) (back func()) {
	c.t.Helper()
	elsewhere := filepath.Join(c.t.TempDir(), "away", "checkpoint")
	if err := os.MkdirAll(filepath.Dir(elsewhere), 0o700); err != nil {
		c.t.Fatal(err)
	}
	move := func(from, to string) {
		c.t.Helper()
		if err := os.Rename(from, to); err != nil {
			c.t.Fatal(err)
		}
	}
	move(l.dir, elsewhere)
	return func() { move(elsewhere, l.dir) }
}

// TestParentGone between the dumps: it, or one that it builds on. With it back
// the chain goes on, and the tracker with it.
func TestParentGone(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	second := c.on(first)
	back := c.away(second)
	_, err := c.try(second)
	c.refuses(err, stasis.ErrInput, second.dir, "no checkpoint")
	back()
	back = c.away(first)
	_, err = c.try(second)
	c.refuses(err, stasis.ErrInput, filepath.Base(first.dir), "is missing", "dump without a parent")
	back()
	third := c.on(second)
	c.relied(third)
	c.right(third)
}

// TestParentGoneDuringADump that would end the tree.
func TestParentGoneDuringADump(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	for _, test := range []struct {
		point    string
		replaced bool // by a folder with nothing in it
	}{
		{"prepare", false}, {"copy", false}, {"freeze", true}, {"publish", false},
	} {
		t.Run(test.point, func(t *testing.T) {
			c := c.within(t)
			w := start(t, plan{PID: c.p.PID(), Dir: c.next().dir, Parent: first.dir, After: stasis.AfterKill, Wait: []string{test.point}})
			w.reach(test.point)
			back := c.away(first)
			defer back()
			if test.replaced {
				if err := os.Mkdir(first.dir, 0o700); err != nil {
					t.Fatal(err)
				}
				defer os.Remove(first.dir)
			}
			w.goOn()
			c.wantFailure(w, "input", first.dir, "parent")
		})
	}
	second := c.on(first)
	c.right(second)
}

// TestParentReplaced by another checkpoint of the same program, in its folder:
// what the tracker says is of no use for that one.
func TestParentReplaced(t *testing.T) {
	c := newChain(t)
	old := c.on(nil)
	parent := c.on(old)
	c.away(parent)
	if err := os.Rename(old.dir, parent.dir); err != nil {
		t.Fatal(err)
	}
	next := c.on(parent)
	c.compared(next, "not the parent")
	c.right(next)
}

// TestParentOfAnotherProcess is refused.
func TestParentOfAnotherProcess(t *testing.T) {
	c := newChain(t)
	other := newChain(t)
	foreign := other.on(nil)
	_, err := c.try(foreign)
	c.refuses(err, stasis.ErrInput, "leave the parent out")
}

// TestParentDamaged: where a dump cannot use it, it says so; a block that it
// cannot read is copied again; one that it does not read is noticed by the
// restore, which then leaves nothing behind.
func TestParentDamaged(t *testing.T) {
	c := newChain(t)
	good := c.on(nil)
	whole := readCheckpoint(t, good.dir)
	for _, test := range []struct {
		name   string
		change func(stored)
	}{
		{"manifest", flip(store.ManifestName, 300)},
		{"manifest missing", func(s stored) { delete(s, store.ManifestName) }},
		{"shard header", flip(image.ShardName(0), 9)},
		{"index", flip(image.ShardName(1), -100)},
		{"shard cut", func(s stored) { s[image.ShardName(1)] = s[image.ShardName(1)][:1<<20] }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := c.within(t)
			bad := &link{dir: filepath.Join(t.TempDir(), "bad")}
			whole.write(t, bad.dir, test.change)
			_, err := c.try(bad)
			kind := stasis.ErrDamaged
			if test.name == "manifest missing" {
				kind = stasis.ErrInput
			}
			c.refuses(err, kind, "bad")
		})
	}
	t.Run("block", func(t *testing.T) {
		c := c.within(t)
		parent := c.on(nil)
		child := c.on(parent)
		c.relied(child)
		shard := filepath.Join(parent.dir, image.ShardName(0))
		at := c.neededBlock(child)
		turn := func() {
			c.t.Helper()
			data, err := os.ReadFile(shard)
			if err != nil {
				t.Fatal(err)
			}
			data[at] ^= 1
			if err := os.WriteFile(shard, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		turn()
		grandchild := c.on(child)
		last := &link{dir: c.next().dir, rewind: c.p.Snapshot()}
		_, err := stasis.Dump(context(), stasis.DumpOptions{PID: c.p.PID(), Dir: last.dir, After: stasis.AfterKill, CRIU: criuOptions})
		if err != nil {
			t.Fatal(err)
		}
		c.gone()
		for _, lazy := range []bool{false, true} {
			_, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: child.dir, Lazy: lazy})
			if !errors.Is(err, stasis.ErrDamaged) {
				t.Errorf("lazy %t: the restore on a damaged parent: %v", lazy, err)
			}
			t.Logf("%v", err)
			c.gone()
		}
		turn()
		if _, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: last.dir}); err != nil {
			t.Fatal(err)
		}
		last.rewind()
		c.look()
		c.right(grandchild)
		c.right(child)
	})
}

// TestParentRots: blocks of the parent, and of what that builds on, cannot be
// read any more. A dump that compares all memory with it sees all of that, and
// makes a checkpoint that does without them.
func TestParentRots(t *testing.T) {
	c := newChain(t)
	first := c.on(nil)
	second := c.on(first)
	rot := func(l *link, origin int) {
		c.t.Helper()
		for i, use := range c.uses(second) {
			if use.Origin != origin || use.File || i%3 > 0 {
				continue
			}
			f, err := os.OpenFile(filepath.Join(l.dir, image.ShardName(use.Shard)), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			at, one := use.Offset+use.Len/2, make([]byte, 1)
			_, err = f.ReadAt(one, at)
			one[0] ^= 0x40
			if err == nil {
				_, err = f.WriteAt(one, at)
			}
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	rot(second, 0)
	rot(first, 1)
	third := c.next()
	result, err := stasis.Dump(context(), stasis.DumpOptions{
		PID: c.p.PID(), Dir: third.dir, Parent: second.dir, Tracker: "none", After: stasis.AfterKill, CRIU: criuOptions,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.gone()
	notes := strings.Join(result.Notes, "; ")
	t.Logf("notes: %s", notes)
	if !strings.Contains(notes, "damaged") {
		t.Error("the notes do not say that the parent is damaged")
	}
	if _, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: third.dir}); err != nil {
		t.Fatal(err)
	}
	third.rewind()
	c.look()
	c.unharmed()
}

// neededBlock is a place in the data of a block in the parent's first shard
// that a checkpoint needs.
func (c *chained) neededBlock(l *link) int64 {
	c.t.Helper()
	for _, use := range c.uses(l) {
		if use.Origin == 1 && use.Shard == 0 && !use.File {
			return use.Offset + use.Len/2
		}
	}
	c.t.Fatal("nothing of the parent's first shard is needed")
	return 0
}

func (c *chained) uses(l *link) []image.Use {
	c.t.Helper()
	src, err := store.OpenFolder(l.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	checkpoint, err := reader.Open(src)
	if err != nil {
		c.t.Fatal(err)
	}
	defer checkpoint.Close()
	return checkpoint.Uses()
}
