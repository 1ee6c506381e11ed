package proc

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Descriptor is an open descriptor of a process.
type Descriptor struct {
	FD     int
	Target string // what it links to: a path, "socket:[INODE]", "anon_inode:[eventpoll]", …
}

// Socket is the inode of the socket that the descriptor refers to, or false.
func (d Descriptor) Socket() (inode uint64, ok bool) {
	number, ok := strings.CutPrefix(d.Target, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode, err == nil
}

// Pipe is the inode of the pipe that the descriptor is an end of.
func (d Descriptor) Pipe() (inode uint64, ok bool) {
	number, ok := strings.CutPrefix(d.Target, "pipe:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode, err == nil
}

// HasPath says whether the descriptor refers to something that has, or had, a
// name in a file system.
func (d Descriptor) HasPath() bool { return strings.HasPrefix(d.Target, "/") }

// deletedMark is what the kernel adds to the path of a file that has lost its
// name.
const deletedMark = " (deleted)"

// Files reads the descriptors of one process. Close ends it.
type Files struct {
	pid  int
	dir  *os.File
	link []byte
}

// OpenFiles opens the table of descriptors of a process.
func OpenFiles(pid int) (*Files, error) {
	dir, err := os.Open(path(pid, "fd"))
	if err != nil {
		return nil, gone(pid, "fd", err)
	}
	return &Files{pid: pid, dir: dir, link: make([]byte, unix.PathMax)}, nil
}

// Close closes the table.
func (f *Files) Close() error { return f.dir.Close() }

// List lists the open descriptors in ascending order. It may be called once.
func (f *Files) List() ([]Descriptor, error) {
	names, err := f.dir.Readdirnames(-1)
	if err != nil {
		return nil, gone(f.pid, "fd", err)
	}
	list := make([]Descriptor, 0, len(names))
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		n, err := unix.Readlinkat(int(f.dir.Fd()), name, f.link)
		if err != nil {
			continue // closed since it was listed
		}
		list = append(list, Descriptor{FD: fd, Target: string(f.link[:n])})
	}
	slices.SortFunc(list, func(a, b Descriptor) int { return a.FD - b.FD })
	return list, nil
}

// Stat describes the file behind a descriptor, which need not have a name any
// more.
func (f *Files) Stat(fd int) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(f.dir.Fd()), strconv.Itoa(fd), &st, 0)
	return st, gone(f.pid, "fd", err)
}

// Writable says whether a descriptor was opened for writing.
func (f *Files) Writable(fd int) bool {
	var st unix.Stat_t
	err := unix.Fstatat(int(f.dir.Fd()), strconv.Itoa(fd), &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IWUSR != 0
}

// FileSystem is the kind of file system that a descriptor's file lies on, as
// statfs(2) numbers them.
func (f *Files) FileSystem(fd int) (int64, error) {
	var fs unix.Statfs_t
	err := unix.Statfs(path(f.pid, "fd", strconv.Itoa(fd)), &fs)
	return fs.Type, gone(f.pid, "fd", err)
}

// SocketProtocol names the protocol of a socket as the kernel calls it: TCP,
// UNIX, NETLINK, MPTCP, … It is the only source for sockets that are in none of
// the tables of [Sockets].
func (f *Files) SocketProtocol(fd int) (string, error) {
	name := make([]byte, 64)
	n, err := unix.Getxattr(path(f.pid, "fd", strconv.Itoa(fd)), "system.sockprotoname", name)
	if err != nil {
		return "", gone(f.pid, "fd", err)
	}
	return strings.TrimRight(string(name[:n]), "\x00"), nil
}

// DescriptorInfo is what /proc/PID/fdinfo says about a descriptor.
type DescriptorInfo struct {
	Flags    int // as open(2) takes them
	MountID  int // of the mount that it was opened on, as in mountinfo
	Terminal int // of the master of a terminal: its number N of /dev/pts/N; else -1
	// Semaphore: an eventfd that was made with EFD_SEMAPHORE. Linux before 6.11 does not tell.
	Semaphore bool
	Locks     []string // file locks and leases that the process holds by it: "POSIX ADVISORY WRITE", …
}

// Info describes how a descriptor was opened and what is locked by it.
func (f *Files) Info(fd int) (DescriptorInfo, error) {
	raw, err := os.ReadFile(path(f.pid, "fdinfo", strconv.Itoa(fd)))
	if err != nil {
		return DescriptorInfo{Terminal: -1}, gone(f.pid, "fdinfo", err)
	}
	return parseInfo(string(raw))
}

func parseInfo(raw string) (DescriptorInfo, error) {
	info := DescriptorInfo{Terminal: -1}
	for line := range strings.Lines(raw) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		switch fields := strings.Fields(value); {
		case key == "flags" && len(fields) == 1:
			flags, err := strconv.ParseUint(fields[0], 8, 32)
			if err != nil {
				return info, fmt.Errorf("read fdinfo: flags %q: %w", fields[0], err)
			}
			info.Flags = int(flags)
		case key == "mnt_id" && len(fields) == 1:
			info.MountID, _ = strconv.Atoi(fields[0])
		case key == "tty-index" && len(fields) == 1:
			if n, err := strconv.Atoi(fields[0]); err == nil {
				info.Terminal = n
			}
		case key == "eventfd-semaphore":
			info.Semaphore = len(fields) == 1 && fields[0] == "1"
		case key == "lock" && len(fields) > 4: // "1: POSIX  ADVISORY  WRITE 123 08:01:99 0 EOF"
			info.Locks = append(info.Locks, strings.Join(fields[1:4], " "))
		}
	}
	return info, nil
}

// Mounts are the ids of the mounts that a process sees, and where they are.
func Mounts(pid int) (map[int]string, error) {
	raw, err := readFile(pid, "mountinfo")
	if err != nil {
		return nil, err
	}
	mounts := make(map[int]string)
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		id, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, fmt.Errorf("read mountinfo of process %d: %w", pid, err)
		}
		mounts[id] = fields[4]
	}
	return mounts, nil
}

// StatMapping describes the file behind a mapping, which need not have a name
// any more. It needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
func StatMapping(pid int, m Mapping) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Stat(path(pid, "map_files", fmt.Sprintf("%x-%x", m.Start, m.End)), &st)
	return st, gone(pid, "map_files", err)
}

// StatExe describes the executable of a process.
func StatExe(pid int) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Stat(path(pid, "exe"), &st)
	return st, gone(pid, "exe", err)
}

// CutDeleted takes the mark off the path of a file that has lost its name.
func CutDeleted(path string) (name string, deleted bool) { return strings.CutSuffix(path, deletedMark) }

// namespaceKinds are the names in /proc/PID/ns, with what they are called here.
var namespaceKinds = []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}

// Namespaces are the namespaces of a process by kind (cgroup, ipc, mnt, net,
// pid, time, user, uts), as the kernel names them: "net:[4026531840]".
func Namespaces(pid int) (map[string]string, error) {
	list := make(map[string]string, len(namespaceKinds))
	for _, kind := range namespaceKinds {
		name, err := os.Readlink(path(pid, "ns", kind))
		switch {
		case err == nil:
			list[kind] = name
		case errors.Is(err, os.ErrNotExist): // this kernel has no such kind, or the process has gone
		default:
			return nil, gone(pid, "ns/"+kind, err)
		}
	}
	if len(list) == 0 {
		return nil, gone(pid, "ns", os.ErrNotExist)
	}
	return list, nil
}
