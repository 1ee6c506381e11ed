package chain

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/reader"
	"stasis/internal/store"
)

// Open opens the checkpoint in the folder dir together with its ancestors, which are looked for when they are needed: where the
// manifest says, then beside dir and beside those places, then in roots, each of which is a checkpoint's folder or a folder of those. Errors are those of
// [store.OpenFolder] and [image.Open], and [*DedupedError]. The caller closes the checkpoint.
func Open(dir string, roots ...string) (*reader.Checkpoint, error) {
	src, err := store.OpenFolder(dir)
	if err != nil {
		return nil, err
	}
	return OpenSource(src, dir, roots...)
}

// OpenSource is Open for any source. near is the folder that its ancestors are relative to; for a *store.Folder it is the folder
// itself.
func OpenSource(src store.Source, near string, roots ...string) (*reader.Checkpoint, error) {
	if f, ok := src.(*store.Folder); ok {
		near = f.Name()
		if err := checkDeduped(near); err != nil {
			return nil, err
		}
	}
	return openAny(src, near, roots)
}

// OpenIndex is Open for whoever looks at manifest and index alone: it also opens a checkpoint that was deduplicated.
func OpenIndex(dir string) (*reader.Checkpoint, error) {
	src, err := store.OpenFolder(dir)
	if err != nil {
		return nil, err
	}
	return openAny(src, src.Name(), nil)
}

// openAny opens a checkpoint whether it was deduplicated or not.
func openAny(src store.Source, near string, roots []string) (*reader.Checkpoint, error) {
	m, err := image.ReadManifest(src)
	if err != nil {
		return nil, err
	}
	return reader.OpenWith(src, m, Resolver(m, near, roots...))
}

// Resolver finds the ancestors of the checkpoint with the manifest m, which is in the folder dir; see [Open] for where. What makes
// a folder the ancestor is the id in it, never its name. Its error is a [*MissingError]. It may be called from any number of
// goroutines.
func Resolver(m *image.Manifest, dir string, roots ...string) reader.Resolver {
	f := newFinder(m, dir, roots)
	return func(id [16]byte) (store.Source, error) {
		folder, err := f.find(id)
		if err != nil {
			return nil, err // and not a nil *Folder in an interface
		}
		return folder, nil
	}
}

// Missing lists the ancestors of the checkpoint with the manifest m, in the folder dir, that are not to be found. A restore asks
// before it begins.
func Missing(m *image.Manifest, dir string, roots ...string) []*MissingError {
	var missing []*MissingError
	f := newFinder(m, dir, roots)
	for _, o := range m.Origins {
		id, err := image.ParseID(o.ID)
		if err != nil {
			continue // image refuses such a manifest
		}
		var lost *MissingError
		if _, err := f.find(id); errors.As(err, &lost) {
			missing = append(missing, lost)
		}
	}
	return missing
}

// MissingError says that an ancestor of a checkpoint is not to be found.
type MissingError struct {
	ID     string   // of the ancestor, 32 hex digits
	Path   string   // where the manifest says that it is, absolute; may be ""
	Near   string   // the folder of the checkpoint
	Looked []string // what was looked at, for people
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("the ancestor %s of %s is missing: looked for it %s: put its folder back, or beside %s, or name the folder that has it",
		e.ID, e.Near, strings.Join(e.Looked, ", "), e.Near)
}

// finder looks for checkpoints by id. The folders beside dir, beside the places that the manifest names, and in the roots are read
// once, when the first ancestor is not where the manifest says.
type finder struct {
	dir    string              // absolute
	paths  map[[16]byte]string // where the manifest says, absolute; "": it does not say
	places []string            // whose folders are looked at, the most likely first

	once  sync.Once
	index map[[16]byte]string // written within once
}

func newFinder(m *image.Manifest, dir string, roots []string) *finder {
	f := &finder{dir: absolute(dir), paths: make(map[[16]byte]string, len(m.Origins))}
	f.place(filepath.Dir(f.dir))
	for _, o := range m.Origins {
		id, err := image.ParseID(o.ID)
		if err != nil || o.Path == "" {
			continue // image refuses such an id
		}
		path := o.Path
		if !filepath.IsAbs(path) {
			path = filepath.Join(f.dir, path)
		}
		f.paths[id] = path
		f.place(filepath.Dir(path))
	}
	for _, root := range roots {
		f.place(absolute(root))
	}
	return f
}

func (f *finder) place(dir string) {
	if !slices.Contains(f.places, dir) {
		f.places = append(f.places, dir)
	}
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path // only without a working directory
}

// find returns the folder of the checkpoint with that id. Its error is a *MissingError.
func (f *finder) find(id [16]byte) (*store.Folder, error) {
	return f.findWith(id, func(path string) (*store.Folder, string, error) {
		folder, why := withID(path, id)
		return folder, why, nil
	})
}

// findWith is find with another look at a folder: it returns the folder where that has the checkpoint, else says what is there. Its
// error ends the search.
func (f *finder) findWith(id [16]byte, look func(path string) (folder *store.Folder, why string, err error)) (*store.Folder, error) {
	path := f.paths[id]
	why := ""
	if path != "" {
		folder, reason, err := look(path)
		if folder != nil || err != nil {
			return folder, err
		}
		why = reason
	}
	f.once.Do(func() { f.index = readFolders(f.places) })
	if at, ok := f.index[id]; ok {
		if folder, _, err := look(at); folder != nil || err != nil {
			return folder, err
		}
	}
	lost := &MissingError{ID: hexID(id), Path: path, Near: f.dir}
	if path != "" {
		lost.Looked = append(lost.Looked, fmt.Sprintf("at %s (%s)", path, why))
	}
	for _, place := range f.places {
		lost.Looked = append(lost.Looked, "in "+place)
	}
	return nil, lost
}

// readFolders finds the checkpoints in places and in their folders, by id. Of several with the same id the first counts. What
// can't be read is left out: an ancestor that is needed and not found is an error anyway.
func readFolders(places []string) map[[16]byte]string {
	found := map[[16]byte]string{}
	note := func(dir string) {
		if id, err := idOf(dir); err == nil {
			if _, twice := found[id]; !twice {
				found[id] = dir
			}
		}
	}
	for _, place := range places {
		note(place)
		entries, err := os.ReadDir(place)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() || e.Type()&fs.ModeSymlink != 0 {
				note(filepath.Join(place, e.Name()))
			}
		}
	}
	return found
}

// withID opens the folder at path where it has the checkpoint of that id, or what is left of it. Else it says what is there.
func withID(path string, id [16]byte) (folder *store.Folder, why string) {
	folder, found, err := identify(path)
	switch {
	case errors.Is(err, store.ErrNoCheckpoint):
		return nil, "no checkpoint there"
	case err != nil:
		return nil, err.Error()
	case found != id:
		return nil, fmt.Sprintf("another checkpoint there, %x", found)
	}
	return folder, ""
}

// idOf reads the id of the checkpoint in dir, or of what is left of it.
func idOf(dir string) (id [16]byte, err error) {
	_, id, err = identify(dir)
	return id, err
}

// identify opens the folder of a checkpoint, or of what is left of one, and reads its id from its first shard: 64 bytes, whatever the
// size of the manifest.
func identify(dir string) (folder *store.Folder, id [16]byte, err error) {
	if folder, err = store.OpenData(dir); err != nil {
		return nil, id, err
	}
	shard, err := folder.Open(image.ShardName(0))
	if err != nil {
		return nil, id, err
	}
	defer shard.Close()
	id, err = ondisk.ShardID(shard)
	return folder, id, err
}

func hexID(id [16]byte) string { return hex.EncodeToString(id[:]) }
