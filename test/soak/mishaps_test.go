package soak

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/keeper"
	"stasis/internal/proc"
	"stasis/internal/testkit"
	"stasis/internal/track"
)

var steps = []stasis.Step{stasis.StepArm, stasis.StepCopy, stasis.StepFreeze, stasis.StepState, stasis.StepWrite, stasis.StepPublish}

// fail lets a dump fail at a step of chance.
func (w *walk) fail() string {
	w.t.Helper()
	parent, at := w.parent(), steps[w.random.IntN(len(steps))]
	opts := w.options(w.next(), parent, stasis.AfterRun)
	opts.AtStep = func(step stasis.Step) error {
		if step == at {
			return fmt.Errorf("broken on purpose at %s", step)
		}
		return nil
	}
	if _, err := stasis.Dump(w.t.Context(), opts); err == nil {
		w.t.Fatalf("a dump that is broken at %s succeeds", at)
	}
	return fmt.Sprintf("on %q at %s", parent, at)
}

// twoAtOnce begins a dump while another one is under way.
func (w *walk) twoAtOnce() string {
	w.t.Helper()
	parent := w.parent()
	second := w.next()
	return w.dumpWith(parent, stasis.AfterRun, func() {
		_, err := stasis.Dump(w.t.Context(), stasis.DumpOptions{PID: w.p.PID(), Dir: second.dir, Parent: parent, After: stasis.AfterRun})
		if !errors.Is(err, stasis.ErrBusy) {
			w.t.Errorf("a second dump at the same time: %v", err)
		}
	})
}

func (w *walk) killTracker() string {
	w.t.Helper()
	list, err := keeper.List()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, k := range list {
		if k.Root == w.p.PID() {
			if err := unix.Kill(k.Keeper, unix.SIGKILL); err != nil {
				w.t.Fatal(err)
			}
			return fmt.Sprint(k.Keeper)
		}
	}
	return ""
}

// foreign dumps while the userfaultfd of somebody else watches the program.
func (w *walk) foreign() string {
	w.t.Helper()
	_ = stasis.StopTracker(w.p.PID()) // else that one has all memory
	other, err := track.NewWriteProtect(w.p.PID())
	if err != nil {
		w.t.Fatalf("another userfaultfd: %v", err)
	}
	what := ""
	for range 1 + w.random.IntN(2) {
		maps, err := proc.Smaps(w.p.PID())
		if err != nil {
			w.t.Fatal(err)
		}
		var mine []proc.Mapping
		for _, m := range maps {
			if m.Private() && m.Anonymous() && !m.Has("gd") && w.random.IntN(3) > 0 {
				mine = append(mine, m)
			}
		}
		if err := other.Round(mine, func(proc.Run) {}); err != nil {
			w.t.Fatalf("another userfaultfd: %v", err)
		}
		what += w.dump() + "; "
	}
	if err := other.Close(); err != nil {
		w.t.Fatal(err)
	}
	return what
}

// gone dumps on a parent that is not where it was.
func (w *walk) gone() string {
	w.t.Helper()
	l := w.pick(anyLink)
	if l == nil {
		return ""
	}
	away := filepath.Join(w.t.TempDir(), "away", "checkpoint")
	if err := os.MkdirAll(filepath.Dir(away), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(l.dir, away); err != nil {
		w.t.Fatal(err)
	}
	_, err := stasis.Dump(w.t.Context(), w.options(w.next(), l.dir, stasis.AfterKill))
	if !errors.Is(err, stasis.ErrInput) {
		w.t.Errorf("a dump on a parent that is not there: %v", err)
	}
	if err := os.Rename(away, l.dir); err != nil {
		w.t.Fatal(err)
	}
	return l.dir
}

// damage dumps on a checkpoint in which a byte is another one. Whatever the new
// checkpoint holds is right, or the damage is found before the program runs.
func (w *walk) damage() string {
	w.t.Helper()
	parent := w.pick(anyLink)
	if parent == nil {
		return ""
	}
	victim := w.pick(anyLink) // it, or one that it may build on
	turn, where := w.byteIn(victim)
	turn()
	child := w.next()
	opts := w.options(child, parent.dir, stasis.AfterRun)
	opts.AutoDedup = false // which would end what can be mended
	result, err := stasis.Dump(w.t.Context(), opts)
	what := fmt.Sprintf("%s of %s is another one, dump of %s on %s: %v", where, victim.dir, child.dir, parent.dir, err)
	if err != nil {
		if !errors.Is(err, stasis.ErrDamaged) && !errors.Is(err, stasis.ErrInput) {
			w.t.Errorf("%s", what)
		}
		turn()
		return what
	}
	w.add(child, result.Manifest)
	_, sound := stasis.Verify(w.t.Context(), stasis.VerifyOptions{Dir: child.dir})
	what += fmt.Sprintf(", notes %q; verify: %v", result.Notes, sound)
	if sound != nil && !errors.Is(sound, stasis.ErrDamaged) {
		w.t.Errorf("%s", what)
	}
	if w.random.IntN(2) == 0 {
		turn()
		return what
	}
	testkit.Kill(w.t, w.p.PID())
	_, err = stasis.Restore(w.t.Context(), stasis.RestoreOptions{Dir: child.dir, Lazy: w.random.IntN(2) == 0})
	switch {
	case err == nil && sound == nil:
		w.isBack(child)
		w.prove()
	case err == nil:
		w.t.Errorf("%s; it is restored", what)
	case sound == nil || !errors.Is(err, stasis.ErrDamaged):
		w.t.Errorf("%s; restore: %v", what, err)
	}
	turn()
	if err != nil {
		testkit.WaitGone(w.t, child.pids)
		what += "; " + w.bringBack(child, false)
	}
	return what
}

// byteIn chooses a byte of a checkpoint. turn makes it another one, and again
// what it was.
func (w *walk) byteIn(l *link) (turn func(), where string) {
	w.t.Helper()
	shards, err := filepath.Glob(filepath.Join(l.dir, "img-*"))
	if err != nil || len(shards) == 0 {
		w.t.Fatalf("%s has no shards (%v)", l.dir, err)
	}
	path := shards[w.random.IntN(len(shards))]
	info, err := os.Stat(path)
	if err != nil {
		w.t.Fatal(err)
	}
	at := w.random.Int64N(info.Size())
	bit := byte(1) << w.random.IntN(8)
	return func() {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		defer file.Close()
		var b [1]byte
		if _, err := file.ReadAt(b[:], at); err != nil && !errors.Is(err, io.EOF) {
			w.t.Fatal(err)
		}
		b[0] ^= bit
		if _, err := file.WriteAt(b[:], at); err != nil {
			w.t.Fatal(err)
		}
	}, fmt.Sprintf("byte %d of %s", at, filepath.Base(path))
}
