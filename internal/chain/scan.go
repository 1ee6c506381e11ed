package chain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stasis/internal/image"
	"stasis/internal/store"
)

// entry is the folder of a checkpoint, or of what is left of one.
type entry struct {
	dir     string // absolute
	id      string // 32 hex digits; "": it could not be read
	removed bool
	mark    *dedupMark      // nil: it gave up nothing
	m       *image.Manifest // nil where err is not
	err     error           // why it can't be read
	notes   []note          // who depends on it from elsewhere
	noteErr error           // why nobody knows all of these
}

// restores says whether it is a checkpoint with all its memory. Only those have needs.
func (e *entry) restores() bool { return !e.removed && e.mark == nil }

// isData says whether it is there for others only.
func (e *entry) isData() bool { return e.removed || e.mark != nil }

// forest is all checkpoints that could have to do with those of an operation.
type forest struct {
	entries []*entry // sorted by folder when scan is done
	dirs    map[string]*entry
	ids     map[string][]*entry
	places  map[string]bool     // whose folders were looked at
	needers map[string][]*entry // by id: whose manifests list it as an origin; made when scan is done
}

// scan reads the checkpoints at and beside targets, then those beside their ancestors and dependents, and those in roots.
func scan(targets, roots []string) (*forest, error) {
	f := &forest{dirs: map[string]*entry{}, ids: map[string][]*entry{}, places: map[string]bool{}}
	for _, dir := range targets {
		dir = absolute(dir)
		f.read(dir)
		if err := f.readPlace(filepath.Dir(dir)); err != nil {
			return nil, err
		}
	}
	for _, root := range roots {
		f.read(absolute(root))
		if err := f.readPlace(absolute(root)); err != nil {
			return nil, err
		}
	}
	for done := 0; done < len(f.entries); { // it grows
		e := f.entries[done]
		done++
		if e.m != nil {
			for _, o := range e.m.Origins {
				f.follow(e, o)
			}
		}
		for _, n := range e.notes {
			f.read(n.Path)
			f.lookAround(n.Path)
		}
	}
	slices.SortFunc(f.entries, func(a, b *entry) int { return strings.Compare(a.dir, b.dir) })
	f.needers = map[string][]*entry{}
	for _, e := range f.entries {
		if e.m != nil {
			for _, o := range e.m.Origins {
				f.needers[o.ID] = append(f.needers[o.ID], e)
			}
		}
	}
	return f, nil
}

// follow looks at an ancestor and at what is beside it.
func (f *forest) follow(e *entry, o image.Origin) {
	if o.Path != "" && len(f.ids[o.ID]) == 0 {
		path := o.Path
		if !filepath.IsAbs(path) {
			path = filepath.Join(e.dir, path)
		}
		f.read(path)
		f.lookAround(path)
	}
	for _, a := range f.ids[o.ID] {
		f.lookAround(a.dir)
	}
}

// lookAround reads what is beside a folder that a checkpoint or a note names. Where that can't be read, nothing of it is missed that
// the caller asked for.
func (f *forest) lookAround(dir string) { _ = f.readPlace(filepath.Dir(dir)) }

// readPlace reads the checkpoints in a folder of checkpoints. Not to be able to is an error: who depends on what would be unknown.
func (f *forest) readPlace(place string) error {
	if f.places[place] {
		return nil
	}
	entries, err := os.ReadDir(place)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("cannot tell which checkpoints build on others in %s: %w", place, err)
	}
	f.places[place] = true
	for _, e := range entries {
		if e.IsDir() || e.Type()&fs.ModeSymlink != 0 {
			f.read(filepath.Join(place, e.Name()))
		}
	}
	return nil
}

// read reads the checkpoint in a folder, where there is one and it was not read before, under whatever name.
func (f *forest) read(dir string) {
	dir = realPath(dir)
	if f.dirs[dir] != nil {
		return
	}
	if e := readEntry(dir); e != nil {
		f.entries = append(f.entries, e)
		f.dirs[dir] = e
		if e.id != "" {
			f.ids[e.id] = append(f.ids[e.id], e)
		}
	}
}

// readEntry reads what a folder has, or returns nil where it has no checkpoint and nothing left of one.
func readEntry(dir string) *entry {
	folder, err := store.OpenData(dir)
	if errors.Is(err, store.ErrNoCheckpoint) {
		return nil
	}
	e := &entry{dir: dir, err: err}
	if err != nil {
		return e
	}
	e.removed = folder.Removed()
	if e.m, e.err = image.ReadManifest(folder); e.err == nil {
		e.id = e.m.ID
	} else {
		id, err := idOf(dir)
		if err != nil {
			return nil // other programs have a manifest.json too
		}
		e.id = hexID(id)
	}
	var markErr error
	if e.mark, markErr = readMark(dir); e.err == nil {
		e.err = markErr
	}
	e.notes, e.noteErr = readNotes(dir)
	return e
}

// dependents lists the checkpoints that need blocks of e. Those that gave up memory themselves need nothing.
func (f *forest) dependents(e *entry) []*entry {
	var list []*entry
	for _, other := range f.needers[e.id] {
		if n := len(list); other.restores() && (n == 0 || list[n-1] != other) { // a manifest may list one twice
			list = append(list, other)
		}
	}
	return list
}

// ancestors lists what e was made on top of: by parents, and whatever else holds blocks of it.
func (f *forest) ancestors(e *entry) []*entry {
	return slices.DeleteFunc(f.ancestorsOfAll([]*entry{e}), func(a *entry) bool { return a == e }) // manifests can form a circle
}

// ancestorsOfAll is ancestors of several, each ancestor once. One of them that others were made on top of is in it.
func (f *forest) ancestorsOfAll(tops []*entry) []*entry {
	var found []*entry
	seen, queued, queue := map[*entry]bool{}, map[*entry]bool{}, slices.Clone(tops)
	for _, e := range tops {
		queued[e] = true
	}
	add := func(id string) {
		for _, a := range f.ids[id] {
			if seen[a] {
				continue
			}
			seen[a], found = true, append(found, a)
			if !queued[a] {
				queued[a], queue = true, append(queue, a)
			}
		}
	}
	for done := 0; done < len(queue); { // it grows
		m := queue[done].m
		done++
		if m != nil {
			add(m.Parent)
			for _, o := range m.Origins {
				add(o.ID)
			}
		}
	}
	return found
}

// unreadable lists checkpoints of which nobody knows what they need.
func (f *forest) unreadable() []*entry {
	var list []*entry
	for _, e := range f.entries {
		if e.err != nil && !e.removed {
			list = append(list, e)
		}
	}
	return list
}

// lacks lists the ids of the ancestors of e that were not found.
func (f *forest) lacks(e *entry) []string {
	var list []string
	for _, o := range e.m.Origins {
		if len(f.ids[o.ID]) == 0 {
			list = append(list, o.ID)
		}
	}
	return list
}

// unknownElsewhere says that checkpoints elsewhere may need e of which nobody knows: those of notes that were not found, neither where
// they say nor anywhere that was looked at. It returns nil where there are none, or with force.
func (f *forest) unknownElsewhere(e *entry, o *Options) *UnknownError {
	if o.Force {
		return nil
	}
	if e.noteErr != nil {
		return &UnknownError{Dirs: []string{e.dir}, Err: e.noteErr}
	}
	unknown := &UnknownError{}
	for _, n := range e.notes {
		if len(f.ids[n.ID]) == 0 {
			unknown.Dirs = append(unknown.Dirs, n.Path)
		}
	}
	if len(unknown.Dirs) == 0 {
		return nil
	}
	return unknown
}
