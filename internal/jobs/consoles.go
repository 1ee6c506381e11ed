package jobs

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/jobs/shim"
)

// consolesOf gives CRIU's names of the terminals and pipes that a job has from outside: its shim's, or, where it runs under somebody
// else's hand, its controlling terminal and the pipes that its output goes to.
func consolesOf(ctx context.Context, s Shim, pid int) ([]string, error) {
	now, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	if now.Console != "" {
		return []string{now.Console}, nil
	}
	if _, outside := s.(*process); !outside {
		return nil, nil
	}
	var keys []string
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), &st) != nil {
			continue
		}
		isTerminal := st.Mode&unix.S_IFMT == unix.S_IFCHR && unix.Major(st.Rdev) >= firstPTY && unix.Major(st.Rdev) <= lastPTY
		isOutput := st.Mode&unix.S_IFMT == unix.S_IFIFO && fd > 0
		if key := shim.Key(&st); (isTerminal || isOutput) && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// Majors of pseudoterminals, see pts(4).
const firstPTY, lastPTY = 136, 143

// consoleFlags are the open(2) flags of a job's terminal, which CRIU does not keep for one that comes from outside.
func consoleFlags(pid int, keys []string) int {
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), &st) != nil || !slices.Contains(keys, shim.Key(&st)) {
			continue
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			if text, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, _ := strconv.ParseInt(strings.TrimSpace(text), 8, 64)
				return int(flags) & (unix.O_NONBLOCK | unix.O_APPEND)
			}
		}
	}
	return 0
}
