package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
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

// escapeGlob makes a folder's name mean itself in a pattern.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// writeNote tells the checkpoint in dir of one elsewhere.
func writeNote(dir string, n note) error {
	return writeDurably(dir, notePrefix+n.ID+".json", n)
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
