// Package proc reads what /proc says about processes: task trees, mappings
// and page maps. It changes nothing in the process it looks at, with one
// exception that its name announces: [Pagemap.Protect] write-protects pages
// whose writes are being tracked.
//
// Words: a task is a process with its threads; a mapping is one line of
// /proc/PID/maps; a run is a stretch of pages with the same answer from the
// page map.
//
// A process can end at any moment. Functions then return an error that wraps
// [ErrGone], so that callers can tell "it ended" from "it cannot be read".
//
// All functions may be called from several goroutines at once; a [Pagemap]
// belongs to one goroutine at a time.
package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// PageSize is the size in bytes of the pages that the page map counts in.
const PageSize = 4096

// ErrGone says that the process ended while it was being looked at.
var ErrGone = errors.New("the process is gone")

// path names a file of a process below /proc.
func path(pid int, elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, elem...)...)
}

// gone turns the many errors of a vanished process into ErrGone.
func gone(pid int, what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("read %s of process %d: %w", what, pid, ErrGone)
	}
	return fmt.Errorf("read %s of process %d: %w", what, pid, err)
}

func readFile(pid int, name string) ([]byte, error) {
	data, err := os.ReadFile(path(pid, name))
	return data, gone(pid, name, err)
}
