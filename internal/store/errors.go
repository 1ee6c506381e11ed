package store

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"
)

// advice says what to do about the errors that folders meet. The error's own text is always kept.
var advice = []struct {
	errno unix.Errno
	todo  string
}{
	{unix.ENOSPC, "the disk is full: free some space or choose a folder on another disk"},
	{unix.EDQUOT, "the disk quota is used up: free some space or choose a folder on another disk"},
	{unix.EFBIG, "a limit on file sizes is reached: use more shards, or raise the limit (ulimit -f)"},
	{unix.EROFS, "the file system is read-only: choose a folder on another one"},
	{unix.EACCES, "no permission: choose another folder, or run as a user who has it"},
	{unix.EPERM, "not permitted: choose another folder, or run as a user who may do that"},
	{unix.EEXIST, "it appeared while the checkpoint was written: move it away or choose another folder"},
	{unix.ENOTDIR, "it is not a folder: choose another path"},
	{unix.ENOENT, "it is not there (a folder's parent must exist; was it removed meanwhile?): make it, or choose another path"},
	{unix.EMFILE, "too many open files: raise the limit (ulimit -n) or use fewer shards"},
	{unix.EIO, "the disk failed: look at the kernel's log and choose another disk"},
	{unix.ESTALE, "the network file system lost it: dump again"},
}

// isAny says whether err is one of those.
func isAny(err error, errnos ...unix.Errno) bool {
	return slices.ContainsFunc(errnos, func(e unix.Errno) bool { return errors.Is(err, e) })
}

// explain makes the error of an operation on a path: what failed, on what, why, and what to do where that is known.
func explain(what, path string, err error) error {
	err = withoutPath(path, err)
	for _, a := range advice {
		if errors.Is(err, a.errno) {
			return fmt.Errorf("%s %s: %w: %s", what, path, err, a.todo)
		}
	}
	return fmt.Errorf("%s %s: %w", what, path, err)
}

// explainReading is explain for what should be there: to make it, or to choose another path, is no help then.
func explainReading(what, path string, err error) error {
	if isAny(err, unix.ENOENT) {
		return fmt.Errorf("%s %s: %w", what, path, withoutPath(path, err))
	}
	return explain(what, path, err)
}

// withoutPath drops the path from an error that is to be told with it.
func withoutPath(path string, err error) error {
	if inner, ok := err.(*fs.PathError); ok && inner.Path == path { //nolint:errorlint // a wrapped one says more than its path
		return inner.Err
	}
	return err
}
