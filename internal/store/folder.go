package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Folder is a checkpoint in a folder.
type Folder struct{ path, manifest string }

var _ Source = (*Folder)(nil)

// OpenFolder finds the checkpoint in the folder path. A folder without a manifest is ErrNoCheckpoint.
func OpenFolder(path string) (*Folder, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find the folder %s: %w", path, err)
	}
	switch ok, err := hasRegular(abs, ManifestName); {
	case err != nil:
		return nil, err
	case ok:
		return &Folder{abs, ManifestName}, nil
	}
	if _, err := os.Stat(abs); err != nil {
		return nil, fmt.Errorf("%w in %s: there is no such folder: check the path", ErrNoCheckpoint, abs)
	}
	if ok, err := hasRegular(abs, RemovedName); ok && err == nil {
		return nil, fmt.Errorf("%w in %s: it was removed, and what is left is there for others that build on it: choose one of those",
			ErrNoCheckpoint, abs)
	}
	return nil, fmt.Errorf("%w in %s: it has no %s: choose a folder that a dump finished writing", ErrNoCheckpoint, abs, ManifestName)
}

// OpenData is OpenFolder for whoever needs the blocks alone: it also finds what is left of a checkpoint that was removed.
func OpenData(path string) (*Folder, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find the folder %s: %w", path, err)
	}
	for _, name := range []string{ManifestName, RemovedName} {
		switch ok, err := hasRegular(abs, name); {
		case err != nil:
			return nil, err
		case ok:
			return &Folder{abs, name}, nil
		}
	}
	return OpenFolder(path) // for its error
}

// hasRegular says whether the folder has a manifest of that name. One that is no file is an error.
func hasRegular(dir, name string) (bool, error) {
	switch st, err := os.Stat(filepath.Join(dir, name)); {
	case err == nil && st.Mode().IsRegular():
		return true, nil
	case err == nil:
		return false, fmt.Errorf("%w in %s: its %s is not a regular file", ErrNoCheckpoint, dir, name)
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, explainReading("cannot open the checkpoint", dir, err)
	}
}

// Removed says whether the checkpoint was removed, and the folder has what is left of it.
func (d *Folder) Removed() bool { return d.manifest == RemovedName }

// Name is the folder's absolute path.
func (d *Folder) Name() string { return d.path }

// Open opens a shard for reading.
func (d *Folder) Open(name string) (File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(d.path, name)
	f, err := openFile(path)
	switch {
	case errors.Is(err, errNotRegular):
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	case err != nil:
		return nil, explainReading("cannot open", path, err)
	}
	return f, nil
}

// Manifest reads the manifest.
func (d *Folder) Manifest() ([]byte, error) {
	path := filepath.Join(d.path, d.manifest)
	f, err := os.Open(path)
	if err != nil {
		return nil, explainReading("cannot open", path, err)
	}
	defer f.Close()
	m, err := io.ReadAll(io.LimitReader(f, MaxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if len(m) > MaxManifest {
		return nil, fmt.Errorf("cannot read %s: it is larger than any manifest (%d MiB)", path, MaxManifest>>20)
	}
	return m, nil
}
