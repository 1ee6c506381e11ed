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
	Remedy string   // what it means and what to do, where that is known; else empty
	Reason string   // the line of the log that Remedy is about
}

// Error says what is wrong and what to do, where that is known, and what CRIU says:
// the reason, and the last error of its log.
func (e *Error) Error() string {
	var said string
	if n := len(e.Lines); n > 0 {
		last := e.Lines[n-1]
		said = fmt.Sprintf("CRIU says %q", last)
		if e.Reason != "" && e.Reason != last {
			said = fmt.Sprintf("CRIU says %q, and at last %q", e.Reason, last)
		}
	}
	switch {
	case said == "":
		said = e.Cause.Error()
	case !errors.Is(e.Cause, errNoReason): // else its log has one
		said += fmt.Sprintf(" (%s)", e.Cause)
	}
	if e.Remedy == "" {
		return said
	}
	return fmt.Sprintf("%s (%s)", e.Remedy, said)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// explain joins an error with the errors in CRIU's log.
func (s *Session) explain(err error) error {
	path := filepath.Join(s.req.WorkDir, s.req.LogName)
	lines := errorLines(path)
	e := &Error{Cause: err, Lines: lines, Log: path}
	e.Remedy, e.Reason = Remedy(lines)
	if e.Remedy == "" && errors.Is(err, ErrRequest) {
		e.Remedy = s.optionsRefused()
	}
	return e
}

// optionsRefused explains why CRIU did not take the request at all: Stasis checks
// the options that it knows.
func (s *Session) optionsRefused() string {
	if len(s.req.Raw) == 0 {
		return ""
	}
	return fmt.Sprintf("this CRIU has no such option, or not with that value, as --criu-opt %q: see criu --help", s.req.Raw)
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
