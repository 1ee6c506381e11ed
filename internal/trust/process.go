package trust

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// User is somebody who is not root.
type User struct{ UID, GID uint32 }

// ProcessError says why a process is not a user's to dump or to restore.
type ProcessError struct {
	PID int
	Why string
}

func (e *ProcessError) Error() string { return fmt.Sprintf("process %d %s", e.PID, e.Why) }

func refuse(pid int, format string, args ...any) error {
	return &ProcessError{pid, fmt.Sprintf(format, args...)}
}

// Tree says whether a process tree may be dumped for a user: every thread of it is the user's alone, as ptrace(2) has it for users
// without privileges, and the tree has nothing that a restore, which runs as root, would have to make at a path that the user can
// redirect meanwhile. To be sure of the answer, ask while the tree is frozen. The error is a *ProcessError where it may not.
func Tree(root int, u User) error {
	tree, err := proc.Tree(root)
	if err != nil {
		return err
	}
	for _, t := range tree {
		if t.Zombie() {
			continue
		}
		if err := live(t.PID, u); err != nil {
			return err
		}
		if err := plain(t.PID); err != nil {
			return err
		}
	}
	return nil
}

// Restored says whether a restored tree, which does not run yet, may be let go for a user: it has no more rights than the user has.
// pids are all of its processes. What a process has open was opened by root, by path, and so may be something else than
// it was when the tree was dumped.
func Restored(pids []int, u User) error {
	for _, pid := range pids {
		if err := identity(pid, u); err != nil {
			return err
		}
		if err := permitted(pid, u); err != nil {
			return err
		}
	}
	return nil
}

// live checks a process that runs by itself.
func live(pid int, u User) error {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", pid), &st); err != nil {
		return fmt.Errorf("look whose process %d is: %w", pid, err)
	}
	if st.Uid != u.UID {
		// Other than its ids, this shows a program that had privileges (PR_SET_DUMPABLE of prctl(2), proc(5)).
		return refuse(pid, "is not yours (user %d), or had privileges", u.UID)
	}
	return identity(pid, u)
}

// identity: all threads have the user's ids and no capability, and share the namespaces of this machine.
func identity(pid int, u User) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return fmt.Errorf("look whose process %d is: %w", pid, err)
	}
	for _, t := range threads {
		if err := thread(pid, t.Name(), u); err != nil {
			return err
		}
	}
	ours, err := proc.Namespaces(unix.Getpid())
	if err != nil {
		return err
	}
	theirs, err := proc.Namespaces(pid)
	if err != nil {
		return err
	}
	for kind, name := range theirs {
		if ours[kind] != name {
			return refuse(pid, "has a %s namespace of its own", kind)
		}
	}
	var here, there unix.Stat_t
	if err := errors.Join(unix.Stat("/", &here), unix.Stat(fmt.Sprintf("/proc/%d/root", pid), &there)); err != nil {
		return fmt.Errorf("look at the root of process %d: %w", pid, err)
	}
	if here.Dev != there.Dev || here.Ino != there.Ino {
		return refuse(pid, "has a root folder of its own")
	}
	return nil
}

func thread(pid int, tid string, u User) error {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", tid, "status"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil // it has ended
	} else if err != nil {
		return fmt.Errorf("look whose process %d is: %w", pid, err)
	}
	seen := 0
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		switch fields := strings.Fields(value); key {
		case "Uid":
			seen++
			if !all(fields, strconv.FormatUint(uint64(u.UID), 10)) {
				return refuse(pid, "is not yours: it runs as user %s", strings.Join(fields, "/"))
			}
		case "Gid":
			seen++
			if !all(fields, strconv.FormatUint(uint64(u.GID), 10)) {
				return refuse(pid, "is not yours: it runs as group %s", strings.Join(fields, "/"))
			}
		case "CapPrm", "CapEff", "CapInh", "CapAmb":
			seen++
			if bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err != nil || bits != 0 {
				return refuse(pid, "has capabilities")
			}
		}
	}
	if seen < 5 {
		return refuse(pid, "does not show its identity")
	}
	return nil
}

func all(fields []string, want string) bool {
	for _, f := range fields {
		if f != want {
			return false
		}
	}
	return len(fields) > 0
}

// plain: nothing of the process is made anew at a path when it is restored.
func plain(pid int) error {
	return eachFile(pid, func(f *openFile) error {
		if inode, isSocket := f.Socket(); isSocket {
			sockets, err := proc.Sockets(pid, map[uint64]bool{inode: true})
			if err != nil {
				return err
			}
			if s := sockets[inode]; strings.HasPrefix(s.Local, "/") && s.Protocol == "unix" {
				return refuse(pid, "has a Unix socket at a path, %s: only root can dump it", s.Local)
			}
			return nil
		}
		if !f.named() {
			return nil
		}
		switch f.stat.Mode & unix.S_IFMT {
		case unix.S_IFIFO:
			return refuse(pid, "has a named pipe open, %s: only root can dump it", f.Target)
		case unix.S_IFREG, unix.S_IFDIR:
			if _, deleted := proc.CutDeleted(f.Target); deleted || f.stat.Nlink == 0 {
				return refuse(pid, "has a deleted file open, %s: only root can dump it", f.Target)
			}
		}
		return nil
	})
}

// permitted: the user could have opened everything that the process has open.
func permitted(pid int, u User) error {
	groups, err := groupsOf(pid)
	if err != nil {
		return err
	}
	err = eachFile(pid, func(f *openFile) error {
		if !f.named() {
			return nil
		}
		want := uint32(4)
		switch f.flags & unix.O_ACCMODE {
		case unix.O_WRONLY:
			want = 2
		case unix.O_RDWR:
			want = 6
		}
		if f.flags&unix.O_PATH != 0 {
			want = 0
		}
		if !allows(f.path, &f.stat, u, groups, want) {
			return refuse(pid, "would get %s, which you may not open", f.Target)
		}
		return nil
	})
	if err != nil {
		return err
	}
	maps, err := proc.Maps(pid)
	if err != nil {
		return err
	}
	for _, m := range maps {
		if m.Inode == 0 || !strings.HasPrefix(m.Path, "/") || unlinkedMemory(m.Path) {
			continue
		}
		path := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End)
		want := uint32(4)
		if !m.Private() && len(m.Perms) == 4 && m.Perms[1] == 'w' {
			want = 6
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("look at what process %d has mapped: %w", pid, err)
		}
		if !allows(path, &st, u, groups, want) {
			return refuse(pid, "would map %s, which you may not open", m.Path)
		}
	}
	var st unix.Stat_t
	cwd := fmt.Sprintf("/proc/%d/cwd", pid)
	if err := unix.Stat(cwd, &st); err != nil {
		return fmt.Errorf("look at the working folder of process %d: %w", pid, err)
	}
	if !allows(cwd, &st, u, groups, 1) {
		return refuse(pid, "would be in a working folder that you may not enter")
	}
	return nil
}

// allows decides by owner and mode whether a user may open a file so: 4 to read, 2 to write, 1 to enter. The owner may give
// himself any right. A file with an access control list is its owner's only, here: lists can take from the group what the mode
// seems to give.
func allows(path string, st *unix.Stat_t, u User, groups map[uint32]bool, want uint32) bool {
	switch {
	case st.Uid == u.UID || want == 0:
		return true
	case groups[st.Gid]:
		if n, err := unix.Getxattr(path, "system.posix_acl_access", nil); err == nil && n > 0 {
			return false
		}
		return st.Mode>>3&want == want
	}
	return st.Mode&want == want
}

func groupsOf(pid int) (map[uint32]bool, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, fmt.Errorf("look at the groups of process %d: %w", pid, err)
	}
	groups := make(map[uint32]bool)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if key != "Groups" && key != "Gid" {
			continue
		}
		for _, f := range strings.Fields(value) {
			if n, err := strconv.ParseUint(f, 10, 32); err == nil {
				groups[uint32(n)] = true
			}
		}
	}
	return groups, nil
}

// openFile is a descriptor and what is behind it.
type openFile struct {
	proc.Descriptor
	path  string // that leads there from outside of the process
	stat  unix.Stat_t
	flags int
}

// named says whether it is, or was, something in a file system that others could have put there.
func (f *openFile) named() bool { return f.HasPath() && !unlinkedMemory(f.Target) }

// unlinkedMemory is memory that the kernel shows as a file in the root folder, where only root can put files.
func unlinkedMemory(path string) bool {
	return strings.HasPrefix(path, "/memfd:") || strings.HasPrefix(path, "/SYSV") || path == "/dev/zero (deleted)"
}

func eachFile(pid int, visit func(*openFile) error) error {
	files, err := proc.OpenFiles(pid)
	if err != nil {
		return err
	}
	defer files.Close()
	list, err := files.List()
	if err != nil {
		return err
	}
	for _, d := range list {
		f := &openFile{Descriptor: d, path: fmt.Sprintf("/proc/%d/fd/%d", pid, d.FD)}
		if f.stat, err = files.Stat(d.FD); err != nil {
			return err
		}
		info, err := files.Info(d.FD)
		if err != nil {
			return err
		}
		f.flags = info.Flags
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}
