// Package subject lets tests work on a process other than their own: the test
// binary runs itself again as a subject, which does what it is told over a pipe.
//
// A test package calls [Main] from its TestMain with the functions that a
// subject can run; a test starts one with [Start]. Only tests import it.
package subject

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"stasis/internal/proc"
)

const environment = "STASIS_TEST_SUBJECT"

// Role is what a subject does. It reports with say and waits for the next order
// with hear; it ends when hear returns false.
type Role func(say func(format string, args ...any), hear func() (string, bool))

// Main runs the tests, or the role that this process was started for.
func Main(m *testing.M, roles map[string]Role) {
	role, ok := roles[os.Getenv(environment)]
	if !ok {
		os.Exit(m.Run())
	}
	orders := bufio.NewScanner(os.Stdin)
	role(
		func(format string, args ...any) { fmt.Printf(format+"\n", args...) },
		func() (string, bool) { ok := orders.Scan(); return orders.Text(), ok },
	)
}

// Subject is a running subject.
type Subject struct {
	PID   int
	t     testing.TB
	in    io.WriteCloser
	lines *bufio.Scanner
}

// Start starts this test binary in a role and in a session of its own, as what
// is to be dumped needs; the end of the test ends it.
func Start(tb testing.TB, role string) *Subject {
	tb.Helper()
	return start(tb, role, exec.Command("/proc/self/exe"))
}

// StartJob starts a subject as the job of a shell, in the shell's session. Its
// PID is that of the subject.
func StartJob(tb testing.TB, role string) *Subject {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	// With something to do after it, the shell does not become the subject.
	s := start(tb, role, exec.Command("/bin/sh", "-c", `"$0"; exit`, self))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		children, err := proc.Children(s.PID)
		if err == nil && len(children) == 1 {
			s.PID = children[0]
			return s
		}
		if time.Now().After(deadline) {
			tb.Fatalf("the shell has the children %v (%v)", children, err)
		}
	}
}

func start(tb testing.TB, role string, cmd *exec.Cmd) *Subject {
	tb.Helper()
	cmd.Env = append(os.Environ(), environment+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		in.Close() // at which it ends, even if it is not our child
		cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &Subject{PID: cmd.Process.Pid, t: tb, in: in, lines: bufio.NewScanner(out)}
}

// Ask sends an order and returns the answer.
func (s *Subject) Ask(order string) string {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.in, order); err != nil {
		s.t.Fatalf("order %q: %v", order, err)
	}
	return s.Hear()
}

// Hear waits for a line of the subject.
func (s *Subject) Hear() string {
	s.t.Helper()
	if !s.lines.Scan() {
		s.t.Fatalf("the subject ended: %v", s.lines.Err())
	}
	return s.lines.Text()
}

// Scan reads an answer as the values that fmt.Sscan finds in it.
func (s *Subject) Scan(answer string, into ...any) {
	s.t.Helper()
	if _, err := fmt.Sscan(answer, into...); err != nil {
		s.t.Fatalf("answer %q: %v", answer, err)
	}
}
