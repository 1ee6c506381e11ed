// Package trust says whether somebody but root could have written a checkpoint.
//
// A restore runs as root, with the identities and files that the checkpoint names: whoever can write the checkpoint can become
// anybody. Its checksums find damage, not malice.
//
// Nothing here keeps state: everything may be called from several goroutines at once.
package trust

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may have, as in path_resolution(7).
const maxLinks = 40

// Error says who could have written what.
type Error struct {
	Path string // the file or folder that is not root's alone
	Why  string // what follows its name in a sentence: "belongs to user 1000 (alice)"
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s: whoever can write a checkpoint decides as whom it is restored; copy it to a folder that is root's alone, if you know that it is good", e.Path, e.Why)
}

// Folder checks a folder of a checkpoint, all that is in it, and all folders above it, up to the root. The error is an *Error where
// another user could have written there. The path is absolute; symbolic links in it are followed, and those and where they are
// have to be root's, too. What belongs to one of the users that are given counts as root's: they may do as root does.
func Folder(path string, users ...uint32) error {
	j := judge{users}
	at, err := j.resolve(filepath.Clean(path))
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(at)
	if err != nil {
		return fmt.Errorf("look who could have written the checkpoint: %w", err)
	}
	for _, e := range entries {
		if err := j.file(filepath.Join(at, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Way checks all folders on the way to a folder, and that one itself, but nothing in it.
func Way(path string) error {
	_, err := judge{}.resolve(filepath.Clean(path))
	return err
}

// judge decides who counts as root.
type judge struct{ users []uint32 }

// resolve walks down a path, and checks everything on the way.
func (j judge) resolve(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s: it is no absolute path", path)
	}
	if err := j.folder("/"); err != nil {
		return "", err
	}
	at, rest, links := "/", strings.Split(strings.Trim(path, "/"), "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if err != nil {
			return "", fmt.Errorf("look who could have written the checkpoint: %w", err)
		}
		if info.Mode()&os.ModeSymlink == 0 {
			if err := j.folder(next); err != nil {
				return "", err
			}
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("look who could have written the checkpoint: %s: %w", path, unix.ELOOP)
		}
		if err := j.owned(next); err != nil {
			return "", err
		}
		to, err := os.Readlink(next)
		if err != nil {
			return "", fmt.Errorf("look who could have written the checkpoint: %w", err)
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(to, "/"), "/"), rest...)
	}
	return at, nil
}

// folder checks a folder on the way. In one with the sticky bit, such as /tmp, nobody can touch what is root's.
func (j judge) folder(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("look who could have written the checkpoint: %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("look who could have written the checkpoint: %s: %w", path, unix.ENOTDIR)
	}
	return j.decide(path, &st, st.Mode&unix.S_ISVTX != 0)
}

// file checks a file of a checkpoint.
func (j judge) file(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
		return nil // gone since the folder was read: nothing that a restore could read
	} else if err != nil {
		return fmt.Errorf("look who could have written the checkpoint: %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return &Error{path, "is a symbolic link"}
	}
	return j.decide(path, &st, false)
}

func (j judge) owned(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("look who could have written the checkpoint: %s: %w", path, err)
	}
	return j.decide(path, &st, true)
}

// decide goes by owner and mode. An access control list that lets somebody write shows in the bits of the group (acl(5)).
func (j judge) decide(path string, st *unix.Stat_t, sticky bool) error {
	switch {
	case st.Uid != 0 && !slices.Contains(j.users, st.Uid):
		return &Error{path, "belongs to user " + name(st.Uid)}
	case st.Mode&0o022 != 0 && !sticky:
		return &Error{path, fmt.Sprintf("can be written by others than root (mode %04o)", st.Mode&0o7777)}
	}
	return nil
}

// name is a user for people.
func name(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(number); err == nil {
		return number + " (" + u.Username + ")"
	}
	return number
}
