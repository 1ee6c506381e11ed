package stasis

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// treeLock keeps two dumps from working on one tree at once. It is a lock
// (flock) on /proc/PID/mem of the tree's root.
//
// Only who may trace the process can open that file, so nobody else can take
// the lock in order to be in the way. It leaves nothing behind: it goes when
// Stasis goes, however that ends, and with the process, whose pid may be used
// again. And it belongs to the process, not to a place: it needs no folder that
// all would have to share, and holds across network namespaces, and across mount
// namespaces but for a /proc that was mounted anew: docs/threat-model.md has
// what else was weighed.
type treeLock struct{ fd int }

// lockTree locks the tree of a root. The kind of an error is one for [dump.fail].
func lockTree(root *proc.Task) (lock *treeLock, kind, err error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/mem", root.PID), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return nil, ErrProcess, fmt.Errorf("process %d (%s) may not be looked into by this user (%w): dump it as root", root.PID, root.Comm, err)
	case err != nil:
		return nil, ErrProcess, fmt.Errorf("lock process %d (%s): %w", root.PID, root.Comm, err)
	}
	switch err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		return &treeLock{fd}, nil, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		kind, err = ErrBusy, fmt.Errorf("process %d (%s) is being dumped already%s: wait for that dump to end", root.PID, root.Comm, lockHolder(fd))
	default:
		err = fmt.Errorf("lock process %d (%s): %w", root.PID, root.Comm, err)
	}
	unix.Close(fd)
	return nil, kind, err
}

func (l *treeLock) release() { unix.Close(l.fd) }

// lockHolder tells who has locked a file, for a message; "" where the kernel
// does not say, as of one in another pid namespace.
func lockHolder(fd int) string {
	var st unix.Stat_t
	text, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Fstat(fd, &st) != nil {
		return ""
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(text)) {
		var number, kind, how, mode, at string
		var pid int
		if _, err := fmt.Sscan(line, &number, &kind, &how, &mode, &pid, &at); err == nil && at == file && pid > 0 {
			return fmt.Sprintf(" by process %d (%s)", pid, nameOf(pid))
		}
	}
	return ""
}
