package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"stasis/internal/image"
	"stasis/internal/store"
)

// left lists the checkpoints that restore, by their folders' names.
func (w *world) left() []string {
	w.t.Helper()
	list, err := List(w.places[0])
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		if i.State == StateWhole {
			names = append(names, filepath.Base(i.Dir))
		}
	}
	return names
}

// prune prunes, and sees that what is kept reads as before.
func (w *world) prune(o PruneOptions) *Report {
	w.t.Helper()
	decisions, r, err := Prune(w.places[0], o)
	if err != nil {
		w.t.Fatal(err)
	}
	if !o.DryRun {
		for _, d := range decisions {
			if !d.Keep {
				delete(w.ckpts, d.Dir)
			}
		}
	}
	w.check("after pruning")
	return r
}

func TestPrune(t *testing.T) {
	w := newWorld(t, 40)
	w.line(6)
	pre := w.next(w.ckpts[filepath.Join(w.places[0], "line5")])
	pre.kind = image.KindPreDump
	w.dump(filepath.Join(w.places[0], "pre"), filepath.Join(w.places[0], "line5"), pre)
	if _, _, err := Prune(w.places[0], PruneOptions{}); !errors.Is(err, ErrNoPolicy) {
		t.Errorf("without a policy: %v", err)
	}
	dry := w.prune(PruneOptions{Options: Options{DryRun: true}, Policy: Policy{Last: 3}})
	if len(w.left()) != 7 || len(dry.Removed) != 3 || dry.Freed <= 0 {
		t.Errorf("dry: %+v, left %v", dry, w.left())
	}
	// Each name is a group of its own: all stay.
	w.prune(PruneOptions{Policy: Policy{Last: 1}, GroupBy: func(m *image.Manifest) string { return m.Name }})
	if got := w.left(); len(got) != 7 {
		t.Errorf("one of each group: %v are left", got)
	}
	r := w.prune(PruneOptions{Policy: Policy{Last: 3}})
	if got := w.left(); !slices.Equal(got, []string{"line3", "line4", "line5", "pre"}) {
		t.Errorf("of the last three %v are left", got)
	}
	if r.Freed < dry.Freed*3/4 || r.Freed > dry.Freed*5/4 {
		t.Errorf("%d bytes were given back, %d were announced", r.Freed, dry.Freed)
	}
	// A dump on top of the pre-dump makes it old.
	w.dump(filepath.Join(w.places[0], "line6"), filepath.Join(w.places[0], "pre"), w.next(pre))
	w.prune(PruneOptions{Policy: Policy{Last: 2}})
	if got := w.left(); !slices.Equal(got, []string{"line5", "line6"}) {
		t.Errorf("of the last two %v are left", got)
	}
	// The checkpoints are an hour apart.
	w.prune(PruneOptions{Policy: Policy{Within: Span{Minutes: 30}}, Zone: time.UTC})
	if got := w.left(); !slices.Equal(got, []string{"line6"}) {
		t.Errorf("within half an hour %v are left", got)
	}
	w.removeAll()
}

func TestPruneBySize(t *testing.T) {
	for _, limit := range []int64{1, 500 << 10, 1500 << 10, 1 << 40} {
		w := newWorld(t, 41)
		line := w.line(6)
		w.prune(PruneOptions{Policy: Policy{MaxBytes: limit}})
		left, total := w.left(), int64(0)
		for _, dir := range line {
			if _, err := os.Stat(dir); err == nil {
				total += disk(t, dir)
			}
		}
		t.Logf("%d KiB: %v, %d KiB", limit>>10, left, total>>10)
		switch {
		case !slices.Contains(left, "line5"):
			t.Errorf("the newest is gone")
		case limit == 1 && len(left) != 1, limit == 1<<40 && len(left) != 6:
			t.Errorf("%d bytes: %v are left", limit, left)
		case total > limit+int64(len(line))*16<<10 && len(left) > 1: // headers and indexes of what is left of removed ones
			t.Errorf("%d bytes: %v with %d bytes are left", limit, left, total)
		}
		w.removeAll()
	}
}

// TestPruneLeavesAlone sees that what can't be read is neither removed nor counted, and that deduplicated ones go.
func TestPruneLeavesAlone(t *testing.T) {
	w := newWorld(t, 42)
	line := w.line(4)
	if _, err := AutoDedup(t.Context(), line[3]); err != nil {
		t.Fatal(err)
	}
	for _, dir := range line[:3] {
		delete(w.ckpts, dir)
	}
	lone := filepath.Join(w.places[0], "lone")
	w.dump(lone, "", w.next(nil))
	if err := os.Truncate(filepath.Join(lone, store.ManifestName), 20); err != nil {
		t.Fatal(err)
	}
	delete(w.ckpts, lone)
	// It is known to need nothing of others only with force.
	r := w.prune(PruneOptions{Policy: Policy{Last: 1}, Options: Options{Force: true}})
	if got := w.left(); fmt.Sprint(got) != "[line3]" || len(r.Removed) != 3 {
		t.Errorf("left %v, %+v", got, r)
	}
	if _, err := os.Stat(filepath.Join(lone, store.ManifestName)); err != nil {
		t.Errorf("one that can't be read was removed: %v", err)
	}
}
