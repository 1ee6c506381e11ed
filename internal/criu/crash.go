package criu

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
)

// faults are the signals that a program gets for what it does itself: an
// assertion that fails, memory that is not there.
var faults = []syscall.Signal{syscall.SIGABRT, syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGILL, syscall.SIGFPE, syscall.SIGTRAP, syscall.SIGSYS}

// HowKilled explains the error of [Session.Close] for which [WasKilled] is true:
// whether somebody has ended CRIU, or CRIU is at fault itself. Log is the path of
// its log, whose last line then says how far it came.
func HowKilled(closed error, log string) error {
	exit := (*exec.ExitError)(nil)
	if errors.As(closed, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && slices.Contains(faults, status.Signal()) {
			return fmt.Errorf("CRIU itself has crashed (%w), which is an error in CRIU and none of the program's; the last line of its log: %q; "+
				"try again, then with another version of CRIU (\"stasis check\" shows which one is used)", closed, lastLine(log))
		}
	}
	return fmt.Errorf("somebody ended CRIU (%w): try again; if the machine was short of memory, the kernel's log says so", closed)
}

// lastLine is the last line of a file that is not empty; "" where there is none.
func lastLine(path string) (last string) {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" {
			last = line
		}
	}
	return last
}
