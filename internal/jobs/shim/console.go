package shim

import (
	"fmt"
	"os"
	"strings"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// console is the terminal or pipe of one run.
type console struct {
	ours   *os.File // master of the terminal, or read end
	theirs *os.File // kept open, so that the job may close and reopen its own
	tty    bool
	key    string
}

// newConsole makes a console. The owner is who the job runs as.
func newConsole(terminal bool, uid uint32) (*console, error) {
	c := &console{tty: terminal}
	var err error
	if terminal {
		c.ours, c.theirs, err = pty.Open()
	} else {
		c.ours, c.theirs, err = os.Pipe()
	}
	if err != nil {
		return nil, fmt.Errorf("make a console for the job: %w", err)
	}
	if c.key, err = keyOf(c.theirs); err == nil && terminal {
		if err = os.Chown(c.theirs.Name(), int(uid), -1); err == nil {
			err = os.Chmod(c.theirs.Name(), 0o620)
		}
	}
	if err != nil {
		c.ours.Close()
		c.theirs.Close()
		return nil, fmt.Errorf("make a console for the job: %w", err)
	}
	return c, nil
}

// keyOf is CRIU's name for a terminal or pipe.
func keyOf(file *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return "", err
	}
	return Key(&st), nil
}

// Key is CRIU's name for a terminal or pipe, "" for anything else.
func Key(st *unix.Stat_t) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return fmt.Sprintf("tty[%x:%x]", st.Rdev, st.Dev)
	case unix.S_IFIFO:
		return fmt.Sprintf("pipe:[%d]", st.Ino)
	}
	return ""
}

// isKey picks consoles from what a checkpoint calls external.
func isKey(external string) bool {
	return strings.HasPrefix(external, "tty[") || strings.HasPrefix(external, "pipe:[")
}

// open opens the job's end anew: its flags, such as O_NONBLOCK, are then the job's own. The caller closes it.
func (c *console) open(flags int) (*os.File, error) {
	how, path := unix.O_WRONLY, fmt.Sprintf("/proc/self/fd/%d", c.theirs.Fd())
	if c.tty {
		how, path = unix.O_RDWR, c.theirs.Name()
	}
	flags &= unix.O_NONBLOCK | unix.O_APPEND | unix.O_DSYNC
	fd, err := unix.Open(path, how|flags|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the job's console: %w", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// resize tells the job of the size of whoever looks.
func (c *console) resize(rows, cols uint16) {
	if c.tty && rows > 0 && cols > 0 {
		_ = pty.Setsize(c.ours, &pty.Winsize{Rows: rows, Cols: cols})
	}
}
