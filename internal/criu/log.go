package criu

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Error is a failure of CRIU with what its log says about it.
type Error struct {
	Cause  error    // what the protocol said
	Lines  []string // the errors in CRIU's log, oldest first
	Log    string   // path of the log; gone when the work folder is
	Remedy string   // what to do, where the cause is known; else empty
}

// Error names the last error of CRIU's log and the remedy.
func (e *Error) Error() string {
	text := e.Cause.Error()
	switch n := len(e.Lines); {
	case n > 0 && errors.Is(e.Cause, errNoReason): // its log has one
		text = fmt.Sprintf("CRIU says %q", e.Lines[n-1])
	case n > 0:
		text = fmt.Sprintf("CRIU says %q (%s)", e.Lines[n-1], text)
	}
	if e.Remedy != "" {
		text += "; " + e.Remedy
	}
	return text
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// explain joins an error with the errors in CRIU's log.
func (s *Session) explain(err error) error {
	path := filepath.Join(s.req.WorkDir, s.req.LogName)
	lines := errorLines(path)
	return &Error{Cause: err, Lines: lines, Log: path, Remedy: Remedy(lines)}
}

// withoutNoise drops the lines that are no failure from CRIU's message.
func withoutNoise(message string) string {
	var lines []string
	for line := range strings.Lines(message) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "RLIMIT_NOFILE") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// errorLines lists the error messages of a CRIU log without time stamps and
// source positions. Its first lines about RLIMIT_NOFILE are no failure.
func errorLines(path string) []string {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	var found []string
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	for lines.Scan() {
		_, text, ok := strings.Cut(lines.Text(), "Error (")
		if !ok {
			continue
		}
		if _, message, ok := strings.Cut(text, "): "); ok {
			text = message
		}
		if text = strings.TrimSpace(text); strings.Contains(text, "RLIMIT_NOFILE") || strings.HasSuffix(text, "FAILED.") {
			continue
		}
		found = append(found, text)
	}
	return found
}
