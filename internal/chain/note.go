package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/store"
)

// notePrefix begins the names of notes: files in a checkpoint's folder that tell of a checkpoint elsewhere that builds on it. Those
// beside it need none, as they are found by looking.
const notePrefix = "needed-by-"

// note tells of a checkpoint elsewhere.
type note struct {
	ID   string `json:"id"`
	Path string `json:"path"` // absolute
}

func readNotes(dir string) ([]note, error) {
	paths, err := filepath.Glob(filepath.Join(escapeGlob(dir), notePrefix+"*.json"))
	if err != nil {
		return nil, fmt.Errorf("cannot tell who builds on %s: %w", dir, err)
	}
	var list []note
	for _, path := range paths {
		n, err := readNote(path)
		if err != nil {
			return nil, fmt.Errorf("cannot tell who builds on %s: %w: remove that file if nothing elsewhere does", dir, err)
		}
		list = append(list, n)
	}
	return list, nil
}

func readNote(path string) (n note, err error) {
	f, err := os.Open(path)
	if err != nil {
		return n, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMark))
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(text, &n); err != nil || !filepath.IsAbs(n.Path) || n.ID == "" {
		return n, fmt.Errorf("%s is not as Stasis writes it", path)
	}
	return n, nil
}

// Noting returns a target that, right before the checkpoint in the folder child exists, leaves word of it with those ancestors that it
// depends on and that are held and not beside it. So whoever looks at those knows that they are needed. When the checkpoint does not
// come to exist, the notes go. A nil Lock returns t.
func (l *Lock) Noting(t store.Target, child string) store.Target {
	if l == nil {
		return t
	}
	return &notingTarget{t, l, absolute(child)}
}

type notingTarget struct {
	store.Target
	lock  *Lock
	child string
}

// Commit writes the notes, then publishes.
func (t *notingTarget) Commit(manifest []byte) error {
	var m image.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return fmt.Errorf("cannot tell what the checkpoint builds on: %w", err)
	}
	dirs, err := t.lock.note(t.child, &m)
	if err == nil {
		err = t.Target.Commit(manifest)
	}
	if err != nil {
		for _, dir := range dirs {
			err = errors.Join(err, os.Remove(noteIn(dir, m.ID)))
		}
	}
	return err
}

// note leaves word of the checkpoint with that manifest, and returns the folders where it did.
func (l *Lock) note(child string, m *image.Manifest) (noted []string, err error) {
	place := realPath(filepath.Dir(child))
	for _, dir := range l.dirs {
		if filepath.Dir(realPath(dir)) == place {
			continue // found by looking
		}
		id, err := idOf(dir)
		if err != nil || !slices.ContainsFunc(m.Origins, func(o image.Origin) bool { return o.ID == hexID(id) }) {
			continue // it holds nothing of it; an ancestor that can't be read has to be seen to by the writer
		}
		if err := writeDurably(dir, filepath.Base(noteIn(dir, m.ID)), note{m.ID, filepath.Join(place, filepath.Base(child))}); err != nil {
			return noted, fmt.Errorf("%w: without it %s could be removed, which this checkpoint needs: make it writable, or choose a folder beside it", err, dir)
		}
		noted = append(noted, dir)
	}
	return noted, nil
}

// noteIn is the file in dir that tells of the checkpoint id.
func noteIn(dir, id string) string { return filepath.Join(dir, notePrefix+id+".json") }

// escapeGlob makes a folder's name mean itself in a pattern.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// writeDurably puts a small file of JSON into dir: after a crash it is there as a whole, or not at all.
func writeDurably(dir, name string, v any) error {
	if err := tryWrite(dir, name, v); err != nil {
		return fmt.Errorf("cannot write %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

func tryWrite(dir, name string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
