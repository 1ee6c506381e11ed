package chain

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stasis/internal/image"
	"stasis/internal/store"
)

func TestRemoveKeepsWhatOthersNeed(t *testing.T) {
	w := newWorldOnDisk(t, 1)
	line := w.line(4)
	before := disk(t, line[1])
	r, err := Remove([]string{line[1]}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	delete(w.ckpts, line[1])
	w.check("after the removal of the second")
	after := disk(t, line[1])
	if len(r.Removed) != 1 || r.Removed[0].Dir != line[1] || len(r.Kept) != 1 || len(r.Kept[0].For) == 0 || r.Kept[0].Bytes == 0 {
		t.Errorf("the report is %+v", r)
	}
	if after >= before || r.Freed != before-after {
		t.Errorf("%d bytes of %d are left, and the report says %d less", after, before, r.Freed)
	}
	if r, err = Remove([]string{line[1]}, Options{}); err != nil || len(r.Removed) > 0 {
		t.Errorf("removed once more: %+v, %v", r, err)
	}
	// It goes when nobody needs it any more, whoever is removed last.
	if _, err := Remove([]string{line[3], line[2], line[3]}, Options{}); err != nil {
		t.Fatal(err)
	}
	delete(w.ckpts, line[2])
	delete(w.ckpts, line[3])
	w.check("after the removal of the last two")
	for _, dir := range line[1:] {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", dir)
		}
	}
}

func TestRemoveRefuses(t *testing.T) {
	w := newWorld(t, 2)
	line := w.line(3)
	if _, err := Remove([]string{line[0], w.places[0]}, Options{}); !errors.Is(err, store.ErrNoCheckpoint) {
		t.Errorf("a folder without a checkpoint: %v", err)
	}
	l, err := LockShared(t.Context(), line[2])
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range line[1:] {
		if _, err := Remove([]string{line[0], dir}, Options{}); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "in use") {
			t.Errorf("one that is in use: %v", err)
		}
	}
	w.check("after refused removals")
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := Remove(line, Options{}); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(w.places[0]); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRemoveOfWhatNobodyCanReadOn(t *testing.T) {
	w := newWorld(t, 3)
	line := w.line(3)
	manifest := filepath.Join(line[2], store.ManifestName)
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, text[:len(text)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	before := disk(t, line[0])
	r, err := Remove([]string{line[0]}, Options{})
	if err != nil || len(r.Later) != 1 || !strings.Contains(r.Later[0].Why, line[2]) || disk(t, line[0]) != before {
		t.Errorf("beside one that can't be read: %+v, %v", r, err)
	}
	if err := os.WriteFile(manifest, text, 0o600); err != nil {
		t.Fatal(err)
	}
	delete(w.ckpts, line[0])
	w.check("when it was repaired")
	if _, err := Remove([]string{line[0]}, Options{}); err != nil || disk(t, line[0]) >= before {
		t.Errorf("asked once more, nothing was given back: %v", err)
	}
	w.check("after the second attempt")
}

func TestNotesOfCheckpointsElsewhere(t *testing.T) {
	w := newWorld(t, 4)
	line := w.line(1)
	far := filepath.Join(w.places[1], "deep")
	if err := os.Mkdir(far, 0o700); err != nil {
		t.Fatal(err)
	}
	child := filepath.Join(far, "child")
	w.dump(child, line[0], w.next(w.ckpts[line[0]]))
	if _, err := Remove(line, Options{}); err != nil {
		t.Fatal(err)
	}
	delete(w.ckpts, line[0])
	w.check("with a child elsewhere")
	// As long as the child is not found, everything stays.
	moved := child + "-moved"
	if err := os.Rename(child, moved); err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(far, away); err != nil {
		t.Fatal(err)
	}
	r, err := Remove(line, Options{})
	if err != nil || len(r.Later) != 1 || !strings.Contains(r.Later[0].Why, child) {
		t.Errorf("with a child that is gone: %+v, %v", r, err)
	}
	if r, err = Remove(line, Options{Roots: []string{away}}); err != nil || len(r.Kept) != 1 {
		t.Errorf("with a child that was moved: %+v, %v", r, err)
	}
	c, err := Open(filepath.Join(away, "child-moved"), w.places[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(t.Context(), 1, nil); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Remove(line, Options{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(line[0]); err == nil {
		t.Error("forced, it is still there")
	}
}

// TestNotesGo sees that notes go with the checkpoint that they are about, or with the attempt to make it.
func TestNotesGo(t *testing.T) {
	w := newWorld(t, 8)
	line := w.line(1)
	child := filepath.Join(w.places[1], "child")
	target, err := store.CreateFolder(child)
	if err != nil {
		t.Fatal(err)
	}
	l, err := LockShared(t.Context(), line[0])
	if err != nil {
		t.Fatal(err)
	}
	manifest := fmt.Sprintf(`{"id": %q, "origins": [{"id": %q}]}`, idHex(77), w.ckpts[line[0]].id)
	if err := target.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := l.Noting(target, child).Commit([]byte(manifest)); err == nil {
		t.Error("an aborted target was committed")
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	notes := func() int {
		list, err := readNotes(line[0])
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if n := notes(); n != 0 {
		t.Errorf("%d notes of a checkpoint that never was", n)
	}
	w.dump(child, line[0], w.next(w.ckpts[line[0]]))
	if n := notes(); n != 1 {
		t.Errorf("%d notes of a child elsewhere", n)
	}
	if _, err := Remove([]string{child}, Options{}); err != nil {
		t.Fatal(err)
	}
	if n := notes(); n != 0 {
		t.Errorf("%d notes of a child that was removed", n)
	}
	if err := os.WriteFile(filepath.Join(line[0], notePrefix+idHex(5)+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := Remove(line, Options{}); err != nil || len(r.Later) != 1 {
		t.Errorf("with a note that can't be read: %+v, %v", r, err)
	}
}

func TestDedup(t *testing.T) {
	w := newWorldOnDisk(t, 5)
	line := w.line(4)
	branch, half := filepath.Join(w.places[1], "branch"), *w.ckpts[line[1]]
	half.pages = map[int]map[uint64]uint64{7: {}}
	for page, seed := range w.ckpts[line[1]].pages[7] {
		if page < 1000 {
			half.pages[7][page] = seed
		}
	}
	w.dump(branch, line[1], &half) // needs half of what the second has, and has the rest put anew
	var before [4]int64
	for i, dir := range line {
		before[i] = disk(t, dir)
	}
	refused := errors.New("no")
	var plan *DedupPlan
	if _, err := Dedup(t.Context(), line[2], Options{}, func(p *DedupPlan) error { plan = p; return refused }); !errors.Is(err, refused) {
		t.Fatalf("it was not asked: %v", err)
	}
	w.check("after a refusal")
	if len(plan.Lost) != 2 || plan.Bytes <= 0 || plan.Top.Dir != line[2] {
		t.Errorf("the plan is %+v", plan)
	}
	if r, err := Dedup(t.Context(), line[2], Options{DryRun: true}, nil); err != nil || len(r.Marked) != 2 || r.Freed <= 0 {
		t.Errorf("dry: %+v, %v", r, err)
	}
	w.check("after a dry run")
	r, err := AutoDedup(t.Context(), line[2])
	if err != nil {
		t.Fatal(err)
	}
	freed := before[0] + before[1] - disk(t, line[0]) - disk(t, line[1])
	// The mark takes a block of disk for each.
	if r.Freed <= 0 || r.Freed < freed || r.Freed > freed+2*hole || len(r.Marked) != 2 {
		t.Errorf("%d bytes were given back: %+v", freed, r)
	}
	for _, dir := range line[:2] {
		var lost *DedupedError
		if _, err := Open(dir); !errors.As(err, &lost) || lost.Top != w.ckpts[line[2]].id || lost.Path != line[2] {
			t.Errorf("%s: %v", dir, err)
		}
		delete(w.ckpts, dir)
	}
	w.check("after deduplication")
	// What is a hole already can't be given back again, and is not foretold.
	if r, err := Dedup(t.Context(), line[2], Options{DryRun: true}, nil); err != nil || len(r.Marked) > 0 || r.Freed != 0 {
		t.Errorf("dry, twice: %+v, %v", r, err)
	}
	if r, err := Remove(line[:1], Options{DryRun: true}); err != nil || r.Freed != 0 {
		t.Errorf("dry, a removal of what others need: %+v, %v", r, err)
	}
	if r, err := AutoDedup(t.Context(), line[2]); err != nil || len(r.Marked) > 0 || r.Freed != 0 {
		t.Errorf("twice: %+v, %v", r, err)
	}
	if _, err := Dedup(t.Context(), line[0], Options{}, nil); !errors.As(err, new(*DedupedError)) {
		t.Errorf("for a checkpoint that is deduplicated itself: %v", err)
	}
	// They can be removed, and go with the last that needs them.
	if _, err := Remove(line[:2], Options{}); err != nil {
		t.Fatal(err)
	}
	w.check("after the removal of the deduplicated")
	if _, err := Remove(w.dirs(), Options{}); err != nil {
		t.Fatal(err)
	}
	for _, place := range w.places {
		if left, err := os.ReadDir(place); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// TestDedupLeavesWhatLosesNothing sees that a checkpoint whose memory is all in the top stays one.
func TestDedupLeavesWhatLosesNothing(t *testing.T) {
	w := newWorld(t, 6)
	line := w.line(1)
	same := *w.ckpts[line[0]]
	same.state = "other"
	child := filepath.Join(w.places[0], "same")
	w.dump(child, line[0], &same)
	if r, err := AutoDedup(t.Context(), child); err != nil || len(r.Marked) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	w.check("with nothing to give up")
}

// TestThoroughDedup sees that memory written here and there is given back as well.
func TestThoroughDedup(t *testing.T) {
	w := newWorld(t, 9)
	var dirs []string
	m := &model{kind: image.KindFull, pages: map[int]map[uint64]uint64{7: {}}}
	parent := ""
	for i := range uint64(4) {
		next := *m
		next.pages = map[int]map[uint64]uint64{7: maps.Clone(m.pages[7])}
		for page := range uint64(256) {
			if page%4 == i || i == 0 {
				next.pages[7][page] = 3*(1000*i+page) + 1 // does not compress
			}
		}
		dir := filepath.Join(w.places[0], fmt.Sprint("d", i))
		w.dump(dir, parent, &next)
		dirs, parent, m = append(dirs, dir), dir, &next
	}
	top, second := dirs[3], w.ckpts[dirs[2]].id
	r, err := Dedup(t.Context(), top, Options{}, func(p *DedupPlan) error {
		if p.Partly < 256<<10 {
			t.Errorf("only %d bytes more could be given back", p.Partly)
		}
		return nil
	})
	if err != nil || r.Freed > 256<<10 {
		t.Fatalf("not thorough, it gave back %+v, %v", r, err)
	}
	maps.DeleteFunc(w.ckpts, func(dir string, _ *model) bool { return dir != top })
	w.check("after a deduplication")
	before := int64(0)
	for _, dir := range dirs {
		before += disk(t, dir)
	}
	if r, err = Dedup(t.Context(), top, Options{Thorough: true}, nil); err != nil {
		t.Fatal(err)
	}
	w.check("after a thorough one")
	c, err := Open(top)
	if err != nil {
		t.Fatal(err)
	}
	if now := c.Manifest(); now.Parent != second || now.ID == w.ckpts[top].id || now.ID != r.TopID {
		t.Errorf("the parent is %s, not %s, and the id %s", now.Parent, second, now.ID)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	total := int64(0)
	for _, dir := range dirs {
		total += disk(t, dir)
	}
	// 256 pages, and what belongs to the files.
	if total > 256*image.PageSize*5/4 || r.Freed < before-total-4*hole || r.Freed > before-total+4*hole {
		t.Errorf("%d KiB of %d are left: %+v", total>>10, before>>10, r)
	}
	if again, err := Dedup(t.Context(), top, Options{Thorough: true}, nil); err != nil || again.Freed != 0 {
		t.Errorf("once more: %+v, %v", again, err)
	}
	w.removeAll()
}

// TestAutoDedupIsThoroughWhereItPays dumps a program that writes a quarter of its pages before each dump, here and there. Before the
// fourth it does not pay to write it anew; and that one can be, or can't.
func TestAutoDedupIsThoroughWhereItPays(t *testing.T) {
	for _, can := range []bool{true, false} {
		w := newWorld(t, 40)
		m, parent := &model{kind: image.KindFull, pages: map[int]map[uint64]uint64{7: {}}}, ""
		const pages = 1024
		for i := range uint64(6) {
			next := *m
			next.pages = map[int]map[uint64]uint64{7: maps.Clone(m.pages[7])}
			for page := range uint64(pages) {
				if page%4 == i%4 || i == 0 {
					next.pages[7][page] = 3*(10000*i+page) + 1 // does not compress
				}
			}
			dir := filepath.Join(w.places[0], fmt.Sprint("d", i))
			w.dump(dir, parent, &next)
			if i == 3 && !can { // something is where it would be written
				if err := os.WriteFile(filepath.Join(w.places[0], "."+filepath.Base(dir)+"."+next.id[:8]), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r, err := AutoDedup(t.Context(), dir)
			if err != nil {
				t.Fatalf("dump %d: %v", i, err)
			}
			if anew := i == 3 && can; anew != (r.TopID != next.id) {
				t.Errorf("dump %d: its id is %s, was %s", i, r.TopID, next.id)
			}
			if tried := i == 3 && !can; tried != (len(r.Later) > 0) || tried && !strings.Contains(r.Later[0].Why, "written anew") {
				t.Errorf("dump %d: for later is left %+v", i, r.Later)
			}
			maps.DeleteFunc(w.ckpts, func(old string, _ *model) bool { return old != dir })
			w.check(fmt.Sprintf("after dump %d", i))
			parent, m = dir, &next
		}
	}
}
