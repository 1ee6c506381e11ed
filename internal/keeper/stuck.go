package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// stuck says whether an error is that of a keeper that does not answer: somebody has stopped it, or the machine is at its limits.
func stuck(err error) bool { return errors.Is(err, unix.EAGAIN) }

// find returns the pid of the keeper of a tree without asking it, or 0.
func find(root int, start uint64) int {
	paths, err := filepath.Glob("/proc/[1-9]*/cmdline")
	if err != nil {
		return 0
	}
	for _, path := range paths {
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && isKeeper(pid, root, start) {
			return pid
		}
	}
	return 0
}

// isKeeper says whether a process is the keeper of a tree.
func isKeeper(pid, root int, start uint64) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || string(args) != Name+"\x00" {
		return false
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(append([]byte{0}, environ...), fmt.Appendf(nil, "\x00%s=%d-%d\x00", treeVariable, root, start))
}

// kill ends a keeper that does not answer, which ends the tracking. The kernel leaves nothing in the processes.
func kill(root int, start uint64) error {
	pid := find(root, start)
	if pid == 0 {
		return ErrNone
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("end the tracker %d of process %d, which does not answer: %w", pid, root, err)
	}
	defer unix.Close(fd)
	if !isKeeper(pid, root, start) { // the pid may be another one's by now
		return ErrNone
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("end the tracker %d of process %d, which does not answer: %w", pid, root, err)
	}
	gone := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(gone, int(patience.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for the end of the tracker %d of process %d: %w", pid, root, err)
		case n == 0:
			return fmt.Errorf("the tracker %d of process %d neither answers nor ends: look at the kernel's log", pid, root)
		}
		_ = os.Remove(socketPath(root, start))
		return nil
	}
}
