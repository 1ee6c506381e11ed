package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/store"
)

// outDir is a folder that gets its name when all of it is there and durable. Until then it lies beside, under a name that
// begins with a dot and ends in .partial, locked; what a killed Stasis left of it goes with the next export to that place.
type outDir struct {
	path string // that it will have
	temp string
	lock *os.File
}

const partialMark = ".partial-"

// newOutDir refuses a path where something is, but for an empty folder.
func newOutDir(path string) (*outDir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find the folder %s: %w", path, err)
	}
	entries, err := os.ReadDir(abs)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%s %w, and is not a folder: choose another place", abs, store.ErrExists)
	case err == nil && len(entries) > 0:
		return nil, fmt.Errorf("the folder %s %w, and is not empty: choose a new one", abs, store.ErrExists)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("cannot use the folder %s: %w", abs, err)
	}
	parent, prefix := filepath.Dir(abs), "."+filepath.Base(abs)+partialMark
	sweep(parent, prefix)
	temp, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, fmt.Errorf("cannot make the folder %s: %w", abs, err)
	}
	d := &outDir{path: abs, temp: temp}
	d.lock, err = lockDir(temp)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot lock the folder %s: %w", temp, err), os.Remove(temp))
	}
	return d, nil
}

func lockDir(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOLCK) {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// sweep removes what killed exports left: nobody holds its lock.
func sweep(parent, prefix string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		path := filepath.Join(parent, e.Name())
		if lock, err := lockDir(path); err == nil {
			_ = os.RemoveAll(path) // the next one finds it again
			lock.Close()
		}
	}
}

// commit makes the folder durable and gives it its name.
func (d *outDir) commit() error {
	err := filepath.WalkDir(d.temp, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err // files were synced when they were written
		}
		return syncPath(path)
	})
	if err != nil {
		return fmt.Errorf("cannot sync the folder %s: %w", d.temp, err)
	}
	if err := unix.Rename(d.temp, d.path); err != nil { // an empty folder gives way, which os.Rename would not let it
		return fmt.Errorf("cannot give the folder its name: %w", err)
	}
	d.lock.Close()
	if err := syncPath(filepath.Dir(d.path)); err != nil {
		return fmt.Errorf("%s is complete, but cannot be synced: %w", d.path, err)
	}
	return nil
}

// abort removes it all.
func (d *outDir) abort() error {
	defer d.lock.Close()
	if err := os.RemoveAll(d.temp); err != nil {
		return fmt.Errorf("remove what was written: %w", err)
	}
	return nil
}

func syncPath(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// finishFile makes a file durable and closes it; err is what went wrong before.
func finishFile(f *os.File, err error) error {
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return explained(err)
}

// roomError is a full disk, with what to do about it.
type roomError struct{ error }

func (e roomError) Unwrap() error { return e.error }
func (e roomError) Error() string {
	return e.error.Error() + ": make room there, or choose another place; nothing was left behind"
}

// explained says what to do about a full disk, once.
func explained(err error) error {
	known := roomError{}
	if !errors.As(err, &known) && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return roomError{err}
	}
	return err
}

// checkFree says early that a folder has too little room for so many bytes.
func checkFree(path string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return nil //nolint:nilerr // a file system that does not tell is tried
	}
	if free := st.Bavail * uint64(st.Bsize); uint64(need) > free {
		return explained(fmt.Errorf("%s are needed in %s, and %s are free: %w",
			mebibytes(uint64(need)), filepath.Dir(path), mebibytes(free), unix.ENOSPC))
	}
	return nil
}

func mebibytes(n uint64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }
