package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Folder is a checkpoint in a folder.
type Folder struct{ path string }

var _ Source = (*Folder)(nil)

// OpenFolder finds the checkpoint in the folder path. A folder without a manifest is ErrNoCheckpoint.
func OpenFolder(path string) (*Folder, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find the folder %s: %w", path, err)
	}
	switch st, err := os.Stat(filepath.Join(abs, ManifestName)); {
	case err == nil && st.Mode().IsRegular():
		return &Folder{abs}, nil
	case err == nil:
		return nil, fmt.Errorf("%w in %s: its %s is not a regular file", ErrNoCheckpoint, abs, ManifestName)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, explain("cannot open the checkpoint", abs, err)
	}
	if _, err := os.Stat(abs); err != nil {
		return nil, fmt.Errorf("%w in %s: there is no such folder: check the path", ErrNoCheckpoint, abs)
	}
	return nil, fmt.Errorf("%w in %s: it has no %s: choose a folder that a dump finished writing", ErrNoCheckpoint, abs, ManifestName)
}

// Name is the folder's absolute path.
func (d *Folder) Name() string { return d.path }

// Open opens a shard for reading.
func (d *Folder) Open(name string) (File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(d.path, name)
	// Not to hang where someone put a named pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, explain("cannot open", path, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	return &folderFile{f, st.Size()}, nil
}

// Manifest reads the manifest.
func (d *Folder) Manifest() ([]byte, error) {
	path := filepath.Join(d.path, ManifestName)
	f, err := os.Open(path)
	if err != nil {
		return nil, explain("cannot open", path, err)
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

// folderFile is a shard in a folder.
type folderFile struct {
	*os.File
	size int64
}

var _ File = (*folderFile)(nil)

func (f *folderFile) Size() int64 { return f.size }
