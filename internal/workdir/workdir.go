// Package workdir makes the folders in which CRIU works, and removes those that
// a killed Stasis left.
//
// A work folder lies in memory (tmpfs) as long as little goes into it, so that
// no disk is waited for while a process is frozen. It is readable by its owner
// alone, because it holds what processes had in memory.
package workdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	prefix = "stasis-work-"

	// inMemory is how many bytes may go to a folder in memory.
	inMemory = 64 << 20

	tmpfsMagic = 0x01021994
)

// Dir is a work folder. It is locked as long as it is in use.
type Dir struct {
	path string
	lock *os.File
}

// New makes a work folder for about so many bytes: in memory where they fit,
// else beside the folder near, else in the system's folder for temporary files.
func New(near string, bytes uint64) (*Dir, error) {
	var tried []error
	for _, parent := range parents(near, bytes) {
		sweep(parent)
		d, err := create(parent)
		if err == nil {
			return d, nil
		}
		tried = append(tried, err)
	}
	return nil, fmt.Errorf("make a work folder: %w", errors.Join(tried...))
}

// Path is the absolute path of the folder.
func (d *Dir) Path() string { return d.path }

// Remove removes the folder with everything in it.
func (d *Dir) Remove() error {
	defer d.lock.Close()
	return os.RemoveAll(d.path)
}

// parents lists where the folder could be, best first.
func parents(near string, bytes uint64) []string {
	var list []string
	if bytes <= inMemory {
		for _, dir := range []string{"/run", "/dev/shm"} {
			if onTmpfs(dir) {
				list = append(list, dir)
			}
		}
	}
	if near != "" {
		if abs, err := filepath.Abs(near); err == nil {
			list = append(list, filepath.Dir(abs))
		}
	}
	return append(list, os.TempDir())
}

func onTmpfs(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == tmpfsMagic
}

func create(parent string) (*Dir, error) {
	path, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, err
	}
	lock, err := os.Open(path)
	if err == nil {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return &Dir{path: path, lock: lock}, nil
		}
		lock.Close()
	}
	return nil, errors.Join(err, os.Remove(path))
}

// sweep removes the folders of a Stasis that was killed: nobody holds their
// lock any more.
func sweep(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		path := filepath.Join(parent, e.Name())
		dir, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && ownedByUs(dir) {
			_ = os.RemoveAll(path) // the next sweep finds it again
		}
		dir.Close()
	}
}

func ownedByUs(dir *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(dir.Fd()), &st) == nil && int(st.Uid) == os.Geteuid()
}
