package jobs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
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

// dropFiles deletes the copies.
func (j *job) dropFiles(cp *db.Checkpoint) { _ = os.RemoveAll(filesPath(cp.Dir)) }

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
	beside := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".stasis")
	if err := os.RemoveAll(beside); err != nil { // of an attempt that was cut short
		return err
	}
	if err := copyTree(beside, kept); err != nil {
		return errors.Join(err, os.RemoveAll(beside))
	}
	err = unix.Renameat2(unix.AT_FDCWD, beside, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) { // it is not there any more
		return os.Rename(beside, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("exchange it (a place where something is mounted can't be put back): %w", err), os.RemoveAll(beside))
	}
	return os.RemoveAll(beside)
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
