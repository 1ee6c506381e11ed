package jobs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	continuity "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"stasis/internal/jobs/db"
)

// Files that belong to a job are copied while it stands still, so that they and the memory are of one moment. The copy is made by
// copy_file_range(2), which on file systems that can (Btrfs, XFS, …) shares the blocks and takes no time; elsewhere the job stands still
// for as long as the copying takes.
//
// Beside checkpoint 12 the folder 000012.files holds the i-th path as "i"; a path that was not there has nothing.

// filesPath is the folder of the copies for a checkpoint's folder.
func filesPath(dir string) string { return dir + ".files" }

// keepFiles copies the files that belong to a job. The job stands still.
func (j *job) keepFiles(cp *db.Checkpoint, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	kept := filesPath(cp.Dir)
	if err := os.Mkdir(kept, 0o700); err != nil {
		return fmt.Errorf("keep the job's files: %w", err)
	}
	for i, path := range paths {
		if err := copyTree(filepath.Join(kept, strconv.Itoa(i)), path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keep %s with the checkpoint: %w", path, err)
		}
	}
	cp.Files = paths
	return nil
}

// syncFiles makes the copies durable; the job runs again.
func syncFiles(cp *db.Checkpoint) error {
	if len(cp.Files) == 0 {
		return nil
	}
	folder, err := os.Open(filesPath(cp.Dir))
	if err != nil {
		return fmt.Errorf("keep the job's files: %w", err)
	}
	defer folder.Close()
	if err := unix.Syncfs(int(folder.Fd())); err != nil {
		return fmt.Errorf("keep the job's files: sync: %w", err)
	}
	return nil
}

// dropBeside deletes the copies, and the record.
func (j *job) dropBeside(cp *db.Checkpoint) {
	_ = os.RemoveAll(filesPath(cp.Dir))
	_ = os.Remove(recordPath(cp.Dir))
}

// putFilesBack makes the files what they were at the checkpoint. Each path changes in one step, from what it is to what it was.
func (j *job) putFilesBack(cp *db.Checkpoint) error {
	for i, path := range cp.Files {
		if err := putBack(path, filepath.Join(filesPath(cp.Dir), strconv.Itoa(i))); err != nil {
			return fmt.Errorf("put %s back as it was at checkpoint %d: %w", path, cp.Seq, err)
		}
	}
	return nil
}

func putBack(path, kept string) error {
	_, err := os.Lstat(kept)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(path) // it was not there
	}
	if err != nil {
		return err
	}
	// The folder may be one that others write to, such as /tmp: into a folder of its own nobody can put a link.
	name := "." + filepath.Base(path) + ".stasis-"
	if err := removeAttempts(filepath.Dir(path), name); err != nil {
		return err
	}
	room, err := os.MkdirTemp(filepath.Dir(path), name)
	if err != nil {
		return err
	}
	beside := filepath.Join(room, "new")
	if err := copyTree(beside, kept); err != nil {
		return errors.Join(err, os.RemoveAll(room))
	}
	err = unix.Renameat2(unix.AT_FDCWD, beside, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) { // it is not there any more
		err = os.Rename(beside, path)
	} else if err != nil {
		err = fmt.Errorf("exchange it (a place where something is mounted can't be put back): %w", err)
	}
	return errors.Join(err, os.RemoveAll(room))
}

// removeAttempts removes what is left of attempts that were cut short.
func removeAttempts(dir, name string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyTree copies a file or folder with all that is in it, and what is known of them.
func copyTree(to, from string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return continuity.CopyDir(to, from)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case !info.Mode().IsRegular():
		return errors.New("it is neither a file nor a folder")
	}
	if err := continuity.CopyFile(to, from); err != nil {
		return err
	}
	return copyInfo(to, info)
}

// copyInfo gives a copy the owner, mode and time of the original.
func copyInfo(to string, info fs.FileInfo) error {
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := os.Chown(to, int(sys.Uid), int(sys.Gid)); err != nil {
			return err
		}
	}
	if err := os.Chmod(to, info.Mode()); err != nil {
		return err
	}
	return os.Chtimes(to, time.Time{}, info.ModTime())
}
