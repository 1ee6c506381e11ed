package stasis

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
)

// clockSlack allows for writes between the moment that is noted as the freeze
// and the one in which the last thread stood still.
const clockSlack = time.Second

// fileCheck compares files with what they were.
type fileCheck struct {
	sameHost       bool
	anyPermissions bool                        // CRIU was told to take any
	written        time.Time                   // the tree cannot have written later than that
	needs          map[string]image.NeededFile // by path
	seen           map[string]bool             // paths that need no (further) look
}

// tell is a way to note what is wrong.
type tell func(format string, args ...any)

// look says what is wrong with a file, if anything, and how bad that is.
func (f *fileCheck) look(c *conflicts, file criu.File) (tell, string) {
	key := fmt.Sprintf("%s\x00%d\x00%o", file.Path, file.Size, file.Mode)
	if f.seen[key] || f.seen[file.Path] || !lastingKind(file) {
		return nil, ""
	}
	f.seen[key] = true
	st, err := statAs(file)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		f.seen[file.Path] = true
		return c.foresee, fmt.Sprintf("%s, which the tree has open, is not there: put it back", file.Path)
	}
	if err != nil {
		return c.foresee, fmt.Sprintf("%s, which the tree has open, cannot be read: %v", file.Path, err)
	}
	if text := f.compare(file, &st); text != "" {
		return c.foresee, text
	}
	if !f.modified(file, &st) {
		return nil, ""
	}
	text := fmt.Sprintf("%s, which the tree has open, was modified since (%s)", file.Path, modified(&st))
	if !f.sameHost {
		return c.warn, text + ", or came to this machine at another time; its size is the same"
	}
	return c.object, text + ": put the version of the checkpoint back"
}

// compare does what CRIU does, before anything is begun.
func (f *fileCheck) compare(file criu.File, st *unix.Stat_t) string {
	isDir := file.Mode&unix.S_IFMT == unix.S_IFDIR
	was, is := file.Mode, st.Mode
	if f.anyPermissions {
		was, is = was&^0o777, is&^0o777
	}
	switch {
	case was&unix.S_IFMT != is&unix.S_IFMT:
		return fmt.Sprintf("%s is %s, and was %s when the tree had it open: put that back", file.Path, kindOf(is), kindOf(was))
	case was != is:
		return fmt.Sprintf("%s has the mode %#o, and had %#o when the tree had it open: change it with chmod %o",
			file.Path, is&0o7777, was&0o7777, was&0o7777)
	case !isDir && file.Size >= 0 && st.Size != file.Size:
		return fmt.Sprintf("%s has %d bytes, and had %d when the tree had it open: put that version back (modified %s)",
			file.Path, st.Size, file.Size, modified(st))
	}
	return ""
}

// modified finds files of the same size that were modified. Times are kept for
// the files that the tree did not write itself; others must not be newer than
// the checkpoint.
func (f *fileCheck) modified(file criu.File, st *unix.Stat_t) bool {
	if file.Mode&unix.S_IFMT != unix.S_IFREG || file.Size < 0 {
		return false // no file of content, or a log that others may go on writing
	}
	if was, known := f.needs[file.Path]; known {
		return was.MtimeNS != st.Mtim.Nano()
	}
	return file.Writable && time.Unix(st.Mtim.Unix()).After(f.written)
}

// lastingKind says whether a file is there before its processes are: no
// terminal, and nothing of /proc or /sys.
func lastingKind(file criu.File) bool {
	switch file.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFLNK:
	default:
		return false
	}
	return !strings.HasPrefix(file.Path, "/proc/") && !strings.HasPrefix(file.Path, "/sys/")
}

func statAs(file criu.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	if file.Mode&unix.S_IFMT == unix.S_IFLNK {
		err := unix.Lstat(file.Path, &st)
		return st, err
	}
	err := unix.Stat(file.Path, &st)
	return st, err
}

func modified(st *unix.Stat_t) string {
	return time.Unix(st.Mtim.Unix()).Format("2006-01-02 15:04:05")
}

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFDIR:
		return "a folder"
	case unix.S_IFIFO:
		return "a named pipe"
	case unix.S_IFLNK:
		return "a symbolic link"
	default:
		return "something else"
	}
}
