package chain

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stasis/internal/image"
	"stasis/internal/store"
)

var errCrash = errors.New("crash")

// crashAt makes options that end an operation before its step of that number, counted from 0; a negative one never does.
func crashAt(n int) (o Options, steps *int) {
	steps = new(int)
	o.atStep = func(string) error {
		if *steps++; n >= 0 && *steps > n {
			return errCrash
		}
		return nil
	}
	return o, steps
}

// TestAnyOrder makes chains and branches and lets operations go over them in any order, some of which crash. Every checkpoint that was
// not given up has to read as it was dumped, always.
func TestAnyOrder(t *testing.T) {
	seeds := uint64(15)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		w := newWorld(t, 100+seed)
		w.grow(6)
		for turn := range 12 {
			crash := -1
			if w.r.IntN(2) == 0 {
				crash = w.r.IntN(25)
			}
			o, _ := crashAt(crash)
			what, err := w.anything(o)
			if err != nil && !errors.Is(err, errCrash) {
				t.Fatalf("seed %d, turn %d: %s: %v", seed, turn, what, err)
			}
			w.check(fmt.Sprintf("seed %d, turn %d: %s (crash %v)", seed, turn, what, err))
			w.grow(w.r.IntN(3))
		}
		w.removeAll()
	}
}

// anything does any operation to any checkpoint and takes those that may be given up from what is checked.
func (w *world) anything(o Options) (what string, err error) {
	w.t.Helper()
	dir := w.pick()
	if dir == "" {
		return "nothing", nil
	}
	switch w.r.IntN(5) {
	case 0, 1:
		dirs := []string{dir}
		if other := w.pick(); other != dir && w.r.IntN(2) == 0 {
			dirs = append(dirs, other)
		}
		_, err := Remove(dirs, o)
		w.forget(dirs)
		return fmt.Sprint("remove ", dirs), err
	case 2:
		var lost []string
		switch w.r.IntN(3) {
		case 0:
			o.Thorough = true
		case 1:
			o.pays = func(_, _, _ int64) bool { return true }
		}
		_, err := Dedup(w.t.Context(), dir, o, func(p *DedupPlan) error {
			for _, i := range p.Lost {
				lost = append(lost, i.Dir)
			}
			return nil
		})
		w.forget(lost)
		return fmt.Sprintf("dedup %s (thorough %v, if it pays %v)", dir, o.Thorough, o.pays != nil), err
	case 3:
		c := CompactOptions{Options: o}
		if w.r.IntN(2) == 0 {
			c.To = w.newDir()
		}
		done, err := Compact(w.t.Context(), dir, c)
		if done != nil && err == nil {
			m := *w.ckpts[dir]
			m.id = done.Manifest.ID
			if len(done.Manifest.Origins) > 0 || done.Manifest.Parent != "" {
				w.t.Errorf("compacted, it needs %v", done.Manifest.Origins)
			}
			w.ckpts[done.Dir] = &m
		}
		return "compact " + dir + " to " + c.To, err
	default:
		place := w.places[w.r.IntN(2)]
		keep, _, err := Prune(place, PruneOptions{Options: o, Policy: Policy{Last: 1 + w.r.IntN(5)}})
		for _, d := range keep {
			if !d.Keep {
				w.forget([]string{d.Dir})
			}
		}
		return "prune " + place, err
	}
}

// forget takes checkpoints from what is checked. Those that an operation that crashed did not come to are whole, or they say what
// they are.
func (w *world) forget(dirs []string) {
	w.t.Helper()
	for _, dir := range dirs {
		m := w.ckpts[dir]
		delete(w.ckpts, dir)
		if m == nil {
			continue
		}
		if err := w.read(dir, m); err != nil && !errors.Is(err, store.ErrNoCheckpoint) && !errors.As(err, new(*DedupedError)) {
			w.t.Errorf("given up or not, %s: %v", dir, err)
		}
	}
}

// removeAll removes everything, and sees that nothing is left.
func (w *world) removeAll() {
	w.t.Helper()
	var dirs []string
	for _, place := range w.places {
		entries, err := os.ReadDir(place)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			dir := filepath.Join(place, e.Name())
			if _, err := store.OpenData(dir); err == nil {
				dirs = append(dirs, dir)
			}
		}
	}
	r, err := Remove(dirs, Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, dir := range dirs {
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			w.t.Errorf("%s was removed and has %v: %+v", dir, entries, r)
		}
	}
}

// TestCrashAnywhere lets each operation crash at each of its steps.
func TestCrashAnywhere(t *testing.T) {
	run := map[string]struct {
		touched []int // of the line, that may be given up
		run     func(w *world, line []string, o Options) error
	}{
		"remove the first": {[]int{0}, func(_ *world, line []string, o Options) error { return second(Remove(line[:1], o)) }},
		"remove a middle":  {[]int{1, 2}, func(_ *world, line []string, o Options) error { return second(Remove(line[1:3], o)) }},
		"remove all":       {[]int{0, 1, 2, 3}, func(_ *world, line []string, o Options) error { return second(Remove(line, o)) }},
		"dedup":            {[]int{0, 1}, func(_ *world, line []string, o Options) error { return second(Dedup(t.Context(), line[2], o, nil)) }},
		"thorough dedup": {[]int{0, 1}, func(_ *world, line []string, o Options) error {
			o.Thorough = true
			return second(Dedup(t.Context(), line[2], o, nil))
		}},
		"auto dedup": {[]int{0, 1}, func(_ *world, line []string, o Options) error {
			o.pays = func(gain, _, _ int64) bool { return gain > 0 }
			return second(Dedup(t.Context(), line[2], o, nil))
		}},
		"compact": {nil, func(_ *world, line []string, o Options) error {
			return second(Compact(t.Context(), line[2], CompactOptions{Options: o}))
		}},
		"compact the last": {nil, func(_ *world, line []string, o Options) error {
			return second(Compact(t.Context(), line[3], CompactOptions{Options: o}))
		}},
	}
	for name, test := range run {
		t.Run(name, func(t *testing.T) {
			for at := 0; ; at++ {
				w := newWorld(t, 10)
				line := w.line(4)
				var touched []string
				for _, i := range test.touched {
					touched = append(touched, line[i])
				}
				o, steps := crashAt(at)
				err := test.run(w, line, o)
				w.checkBut(fmt.Sprintf("after a crash at step %d", at), touched)
				if err != nil && !errors.Is(err, errCrash) {
					t.Fatal(err)
				}
				if len(touched) < len(line) {
					w.dump(filepath.Join(w.places[0], "more"), line[3], w.next(w.ckpts[line[3]]))
				}
				if err != nil && (len(touched) == 0 || strings.HasSuffix(name, "dedup")) { // once more, and it comes to its end
					if err := test.run(w, line, Options{}); err != nil && !errors.As(err, new(*DedupedError)) {
						t.Fatalf("once more after a crash at step %d: %v", at, err)
					}
					w.checkBut(fmt.Sprintf("once more after a crash at step %d", at), touched)
				}
				for _, dir := range touched {
					delete(w.ckpts, dir)
				}
				w.removeAll()
				if err == nil {
					if at != *steps || at == 0 {
						t.Errorf("%d steps", *steps)
					}
					return
				}
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

func TestCompact(t *testing.T) {
	w := newWorld(t, 20)
	line := w.line(4)
	m := w.ckpts[line[2]]
	m.kind = image.KindFull
	to := filepath.Join(w.places[1], "new")
	done, err := Compact(t.Context(), line[2], CompactOptions{To: to})
	if err != nil {
		t.Fatal(err)
	}
	if done.Manifest.ID == m.id || len(done.Manifest.Origins) > 0 || done.Manifest.Parent != "" || done.Manifest.Name != "line2" {
		t.Errorf("the new one is %+v", done.Manifest)
	}
	w.ckpts[to] = m
	w.check("after compacting into another folder")
	if _, err := Remove(line, Options{}); err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(w.ckpts, func(dir string, _ *model) bool { return slices.Contains(line, dir) })
	w.check("without the chain that it was made of")
	if _, err := Compact(t.Context(), to, CompactOptions{To: to}); !errors.Is(err, store.ErrExists) {
		t.Errorf("into its own folder: %v", err)
	}
	w.check("after a refusal")
}

// TestCompactInPlace sees that those on top of one that was compacted go on.
func TestCompactInPlace(t *testing.T) {
	w := newWorld(t, 21)
	line := w.line(4)
	for _, i := range []int{3, 1} {
		old := w.ckpts[line[i]].id
		done, err := Compact(t.Context(), line[i], CompactOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if done.Manifest.ID == old {
			t.Errorf("%d has the id of the one that it was made of", i)
		}
		if kept := len(done.Report.Kept) > 0; kept != (i == 1) {
			t.Errorf("what is kept of %d: %+v", i, done.Report)
		}
		w.check("after compacting in place")
	}
	if _, err := Remove(line[:2], Options{}); err != nil {
		t.Fatal(err)
	}
	delete(w.ckpts, line[0])
	delete(w.ckpts, line[1])
	w.check("after the removal of what others need")
	l, err := LockShared(t.Context(), line[3])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compact(t.Context(), line[3], CompactOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("in use: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	w.removeAll()
}
