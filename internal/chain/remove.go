package chain

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"stasis/internal/store"
)

// Remove removes the checkpoints in dirs. What others need of them stays in their folders until the last of those goes; see the
// package comment. A folder without a checkpoint is store.ErrNoCheckpoint, and nothing is removed then; one that is dumped on or
// restored from is [ErrBusy].
func Remove(dirs []string, o Options) (*Report, error) {
	dirs, err := checkpointsIn(dirs)
	if err != nil {
		return nil, err
	}
	f, err := scan(dirs, o.Roots)
	if err != nil {
		return nil, err
	}
	if o.DryRun {
		return f.remove(dirs, nil, &o)
	}
	l, err := LockExclusive(dirs...)
	if err != nil {
		return nil, err
	}
	defer l.Unlock() //nolint:errcheck // closing a folder loses nothing
	if err := f.lockLeftovers(dirs, l); err != nil {
		return nil, err
	}
	if f, err = scan(dirs, o.Roots); err != nil {
		return nil, err
	}
	return f.remove(dirs, l, &o)
}

// checkpointsIn makes the folders absolute and sees that each has a checkpoint, or what is left of one.
func checkpointsIn(dirs []string) ([]string, error) {
	var out []string
	for _, dir := range dirs {
		if _, err := store.OpenData(dir); err != nil {
			return nil, err
		}
		if dir = realPath(absolute(dir)); !slices.Contains(out, dir) {
			out = append(out, dir)
		}
	}
	return out, nil
}

// lockLeftovers locks, where nobody uses them, whatever is there for others only and could shrink when dirs go.
func (f *forest) lockLeftovers(dirs []string, l *Lock) error {
	for _, e := range f.leftovers(dirs) {
		if err := l.tryExclude(e.dir); err != nil {
			return err
		}
	}
	for _, e := range f.stale() {
		if at := staleFor(e.dir); f.dirs[at] != nil {
			if err := l.tryExclude(at); err != nil || !l.has(at) {
				return err // it is being compacted right now
			}
		}
		if err := l.tryExclude(e.dir); err != nil {
			return err
		}
	}
	return nil
}

// stale lists the folders that a compaction in place left that was killed: the new checkpoint that did not come to its place, or the
// old one that was not removed.
func (f *forest) stale() []*entry {
	return slices.DeleteFunc(slices.Clone(f.entries), func(e *entry) bool { return e.removed || staleFor(e.dir) == "" })
}

// leftovers lists what is there for others only and either is an ancestor of a checkpoint in dirs, or is removed and not needed by
// anybody, as after a crash.
func (f *forest) leftovers(dirs []string) []*entry {
	wanted := map[*entry]bool{}
	var tops []*entry
	for _, dir := range dirs {
		if e := f.dirs[dir]; e != nil {
			tops = append(tops, e)
		}
	}
	for _, a := range f.ancestorsOfAll(tops) {
		wanted[a] = true
	}
	var list []*entry
	for _, e := range f.entries {
		if e.isData() && (wanted[e] || e.removed && len(f.dependents(e)) == 0) {
			list = append(list, e)
		}
	}
	return list
}

// remove does what Remove does, of what is locked.
func (f *forest) remove(dirs []string, l *Lock, o *Options) (*Report, error) {
	r := newReport()
	var list []*entry
	for _, e := range f.stale() {
		if o.DryRun || !l.has(e.dir) || slices.Contains(dirs, e.dir) {
			continue
		}
		if err := e.unlist(o); err != nil {
			return r, err
		}
	}
	others := f.leftovers(dirs)
	for _, dir := range dirs {
		e := f.dirs[dir]
		if e == nil {
			return r, fmt.Errorf("%w in %s: it was removed meanwhile", store.ErrNoCheckpoint, dir)
		}
		if !e.removed {
			if err := e.unlist(o); err != nil {
				return r, err
			}
			r.Removed = append(r.Removed, e.item())
		}
		list = append(list, e)
	}
	for _, e := range others {
		if (o.DryRun || l.has(e.dir)) && !slices.Contains(list, e) {
			list = append(list, e)
		}
	}
	return r, f.collect(list, l, o, r)
}

// unlist makes a checkpoint one no more, by one atomic step. Its blocks stay.
func (e *entry) unlist(o *Options) error {
	if !o.DryRun {
		err := o.step("unlist "+e.dir, func() error {
			from, to := filepath.Join(e.dir, store.ManifestName), filepath.Join(e.dir, store.RemovedName)
			if err := os.Rename(from, to); err != nil {
				return err
			}
			return syncDir(e.dir)
		})
		if err != nil {
			return fmt.Errorf("cannot remove the checkpoint %s: %w", e.dir, err)
		}
	}
	e.removed = true
	return nil
}
