package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"stasis/internal/store"
)

// DedupPlan says what Dedup would do.
type DedupPlan struct {
	Top   Item   `json:"top"`
	Lost  []Item `json:"lost"`  // checkpoints that can't be used any more afterwards, pre-dumps among them
	Bytes int64  `json:"bytes"` // of disk that would be given back, about
	// Partly is how many bytes more lie in blocks of which the top needs a part and nobody else anything: about what a thorough
	// deduplication gives back, less what it writes.
	Partly int64 `json:"partly"`
}

// Dedup gives back the space of memory that the ancestors of the checkpoint in dir hold and neither it needs nor any checkpoint that
// is not one of its ancestors. Ancestors that lose memory can't be restored, verified or dumped on any more: confirm, which may be
// nil, is told before anything is done, and its error ends it. They are marked before they lose the first byte.
//
// Thorough writes the checkpoint in dir anew, in place and with a new id, so that it needs no block in part; see [Compact] for what that
// means for those on top of it.
func Dedup(ctx context.Context, dir string, o Options, confirm func(*DedupPlan) error) (*Report, error) {
	dirs, err := checkpointsIn([]string{dir})
	if err != nil {
		return nil, err
	}
	if _, err := store.OpenFolder(dir); err != nil {
		return nil, err
	}
	if err := checkDeduped(dirs[0]); err != nil {
		return nil, err
	}
	first, err := planDedup(dirs[0], &o)
	if err != nil {
		return nil, err
	}
	plan, err := first.describe(&o)
	if err != nil {
		return nil, err
	}
	if confirm != nil {
		if err := confirm(plan); err != nil {
			return nil, err
		}
	}
	if o.DryRun {
		r, err := first.run(nil, &o)
		r.Freed = plan.Bytes
		return r, err
	}
	l, err := LockExclusive(first.concerned()...)
	if err != nil {
		return nil, err
	}
	defer l.Unlock() //nolint:errcheck // closing a folder loses nothing
	second, err := planDedup(dirs[0], &o)
	if err != nil {
		return nil, err
	}
	for _, e := range second.lost {
		if !slices.Contains(plan.Lost, e.item()) {
			return nil, fmt.Errorf("%s would be lost as well since a moment ago: look again", e.dir)
		}
	}
	for _, e := range second.lost {
		if err := checkHoles(e.dir); err != nil {
			return nil, err
		}
	}
	freed := int64(0)
	if second.sparse != nil && len(second.sparse.blocks) > 0 {
		if freed, err = second.sparse.takeOver(ctx, second.forest, second.top, l, &o); err != nil {
			return nil, err
		}
		if second, err = second.again(dirs[0], l, o); err != nil {
			return nil, err
		}
	}
	r, err := second.run(l, &o)
	r.Freed += freed
	return r, err
}

// again plans for the top that took the place of the old one. Of what is lost nothing is added by that.
func (d *dedup) again(dir string, l *Lock, o Options) (*dedup, error) {
	if err := l.exclude(dir); err != nil { // it is another folder now
		return nil, err
	}
	o.Thorough, o.pays = false, nil
	next, err := planDedup(dir, &o)
	if err != nil {
		return nil, err
	}
	for _, e := range next.lost {
		if !l.has(e.dir) {
			return nil, fmt.Errorf("%s would be lost as well since a moment ago: look again", e.dir)
		}
	}
	return next, nil
}

// AutoDedup is Dedup without a question, for a dump that was asked for it. It comes after the new checkpoint in top exists and the
// lock on its parent was let go. It is thorough where that gives back at least as much as it writes, so that a chain whose dumps write
// here and there takes about twice its memory at most; the checkpoint then has a new id, which is in its manifest.
//
// Where the thorough way fails before the new form is in its place, as on a full disk, the other one is gone, and the report says so.
func AutoDedup(ctx context.Context, top string, roots ...string) (*Report, error) {
	o := Options{Roots: roots, pays: func(gain, cost, own int64) bool { return gain-cost >= own+cost }}
	r, err := Dedup(ctx, top, o, nil)
	var notAnew *notAnewError
	if !errors.As(err, &notAnew) || ctx.Err() != nil {
		return r, err
	}
	if r, err = Dedup(ctx, top, Options{Roots: roots}, nil); err == nil {
		r.Later = append(r.Later, Kept{Item: notAnew.top, Why: notAnew.Error()})
	}
	return r, err
}

// notAnewError says that a checkpoint could not be written anew. It is as it was.
type notAnewError struct {
	top Item
	err error
}

func (e *notAnewError) Error() string {
	return fmt.Sprintf("%s could not be written anew: %v", e.top.Dir, e.err)
}

func (e *notAnewError) Unwrap() error { return e.err }

// dedup is a deduplication that was thought through.
type dedup struct {
	forest *forest
	top    *entry
	data   []*entry // ancestors that are there for others only already
	lost   []*entry // ancestors that lose memory
	wanted needs    // of the ancestors
	sparse *sparse  // nil: it is not thorough
	partly int64
}

// concerned lists the folders that have to be held.
func (d *dedup) concerned() []string {
	dirs := []string{d.top.dir}
	for _, e := range slices.Concat(d.data, d.lost) {
		dirs = append(dirs, e.dir)
	}
	return dirs
}

func planDedup(dir string, o *Options) (*dedup, error) {
	f, err := scan([]string{dir}, o.Roots)
	if err != nil {
		return nil, err
	}
	d := &dedup{forest: f, top: f.dirs[dir]}
	if d.top == nil || !d.top.restores() {
		return nil, fmt.Errorf("%w in %s: it was removed meanwhile", store.ErrNoCheckpoint, dir)
	}
	ancestors, ids := map[*entry]bool{}, map[string]bool{}
	for _, e := range f.ancestors(d.top) {
		ancestors[e], ids[e.id] = true, true
		if e.isData() {
			d.data = append(d.data, e)
		}
		if unknown := f.unknownElsewhere(e, o); unknown != nil {
			return nil, unknown
		}
	}
	if d.wanted, err = d.needs(ids, ancestors, o); err != nil {
		return nil, err
	}
	return d, d.findLost(ancestors, ids, o)
}

// needs gathers what the top and all that are not its ancestors need of these.
func (d *dedup) needs(ids map[string]bool, ancestors map[*entry]bool, o *Options) (needs, error) {
	ancestors[d.top] = true
	others, err := d.forest.needsOf(ids, ancestors, o)
	delete(ancestors, d.top)
	if err != nil {
		return nil, err
	}
	s, err := findSparse(d.top, others, o)
	if err != nil {
		return nil, err
	}
	d.partly = s.gain - s.cost
	if o.Thorough || o.pays != nil && len(s.blocks) > 0 && o.pays(s.gain, s.cost, folderSpace(d.top.dir)) {
		d.sparse = s
		others.add(s.needs, ids)
	} else {
		u, err := o.uses(d.top)
		if err != nil {
			return nil, err
		}
		others.add(u.all, ids)
	}
	others.settle()
	return others, nil
}

// findLost finds the ancestors that lose memory. Those that would lose files alone, or less memory than a file system gives back, are left
// as they are.
func (d *dedup) findLost(ancestors map[*entry]bool, ids map[string]bool, o *Options) error {
	var stay []needs
	for _, e := range d.forest.entries {
		if !ancestors[e] || !e.restores() {
			continue
		}
		u, err := o.uses(e)
		switch {
		case err != nil && !o.Force:
			return &UnknownError{Dirs: []string{e.dir}, Err: err}
		case err == nil && d.wanted.lacking(u.pages, ids) < hole:
			stay = append(stay, u.all)
		default:
			d.lost = append(d.lost, e)
		}
	}
	for _, n := range stay {
		d.wanted.add(n, ids)
	}
	d.wanted.settle()
	return nil
}

// describe tells what would be lost and won.
func (d *dedup) describe(o *Options) (*DedupPlan, error) {
	plan := &DedupPlan{Top: d.top.item()}
	for _, e := range d.lost {
		plan.Lost = append(plan.Lost, e.item())
	}
	dry := *o
	dry.DryRun = true
	r := &Report{}
	for _, e := range slices.Concat(d.data, d.lost) {
		if err := d.forest.collectOne(e, d.wanted, &dry, r); err != nil {
			return nil, err
		}
	}
	plan.Bytes, plan.Partly = r.Freed, d.partly
	if d.sparse != nil {
		plan.Bytes = max(r.Freed-d.sparse.cost, 0)
	}
	return plan, nil
}

func (d *dedup) run(l *Lock, o *Options) (*Report, error) {
	r := newReport()
	r.TopID = d.top.id
	for _, e := range d.lost {
		mark := &dedupMark{Top: d.top.id, Path: d.top.dir, When: time.Now().UTC()}
		if !o.DryRun {
			if err := o.step("mark "+e.dir, func() error { return writeDurably(e.dir, dedupedName, mark) }); err != nil {
				return r, err
			}
		}
		e.mark = mark
		r.Marked = append(r.Marked, e.item())
	}
	list := slices.Concat(d.data, d.lost)
	slices.SortFunc(list, func(a, b *entry) int { return strings.Compare(a.dir, b.dir) })
	return r, d.forest.collect(list, l, o, r)
}
