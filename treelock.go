package stasis

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// treeLock keeps two dumps from working on one tree at once. It is a socket
// with a name in the kernel's own name space: it leaves no file, and goes when
// Stasis goes, however that ends.
type treeLock struct{ fd int }

func lockTree(root *proc.Task) (*treeLock, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lock process %d: %w", root.PID, err)
	}
	name := fmt.Sprintf("@stasis-dump-%d-%d", root.PID, root.StartTime)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("process %d (%s) is being dumped already: wait for that dump to end", root.PID, root.Comm)
		}
		return nil, fmt.Errorf("lock process %d: %w", root.PID, err)
	}
	return &treeLock{fd}, nil
}

func (l *treeLock) release() { unix.Close(l.fd) }
