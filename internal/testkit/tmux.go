package testkit

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"stasis/internal/require"
)

// tmux is a tmux server, nobody attached, with shells on terminals of their own.
// What a shell knows and what its screen shows are its state.
type tmux struct {
	pid     int
	socket  string
	path    string
	round   int
	screens []string // the last lines that each shell printed
}

const tmuxWindows = 2

// StartTmux starts a tmux server with two windows.
func StartTmux(t T) Program {
	t.Helper()
	dir := folder(t)
	m := &tmux{path: require.Program(t, "tmux"), socket: filepath.Join(dir, "socket"), screens: make([]string, tmuxWindows)}
	shell := require.Program(t, "bash") + " --norc --noprofile"
	// -D keeps the server in the foreground: it is our child, in a session of its own.
	m.pid = start(t, command{path: m.path, dir: dir, args: []string{"-S", m.socket, "-f", "/dev/null", "-D"}})
	until(t, "tmux", func() error { return m.try("set-option", "-g", "exit-empty", "off") })
	for range tmuxWindows {
		if err := m.try("has-session"); err != nil {
			m.run(t, "new-session", "-d", "-x", "80", "-y", "24", shell)
		} else {
			m.run(t, "new-window", "-d", shell)
		}
	}
	for w := range tmuxWindows {
		m.shell(t, w, "PS1=; counter=0; secret=from-the-start")
	}
	m.Work(t)
	Watch(m.pid)
	return m
}

func (m *tmux) command(args ...string) *exec.Cmd {
	return exec.Command(m.path, append([]string{"-S", m.socket}, args...)...)
}

func (m *tmux) try(args ...string) error {
	if out, err := m.command(args...).CombinedOutput(); err != nil {
		return fmt.Errorf("tmux %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (m *tmux) run(t T, args ...string) string {
	t.Helper()
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("tmux %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// shell types a line in a window.
func (m *tmux) shell(t T, window int, line string) {
	t.Helper()
	m.run(t, "send-keys", "-t", ":"+strconv.Itoa(window), line, "Enter")
}

// await waits until a window's screen shows a line.
func (m *tmux) await(t T, window int, line string) {
	t.Helper()
	wait(t, replyWithin, "window of tmux", func() error {
		screen := m.run(t, "capture-pane", "-p", "-t", ":"+strconv.Itoa(window))
		if !strings.Contains(screen, line+"\n") {
			return fmt.Errorf("it does not show %q:\n%s", line, screen)
		}
		return nil
	})
}

// PID implements [Program].
func (m *tmux) PID() int { return m.pid }

// Work implements [Program].
func (m *tmux) Work(t T) {
	t.Helper()
	m.round++
	for w := range tmuxWindows {
		m.shell(t, w, fmt.Sprintf("counter=$((counter+%d)); clear; echo round=%d is $counter on $(tty)", w+1, m.round))
		m.screens[w] = fmt.Sprintf("round=%d is %d on %s", m.round, m.round*(w+1), m.tty(t, w))
		m.await(t, w, m.screens[w])
	}
}

func (m *tmux) tty(t T, window int) string {
	t.Helper()
	return strings.TrimSpace(m.run(t, "display-message", "-p", "-t", ":"+strconv.Itoa(window), "#{pane_tty}"))
}

// Prove implements [Program].
func (m *tmux) Prove(t T) {
	t.Helper()
	for w := range tmuxWindows {
		m.await(t, w, m.screens[w])
		// The shell and its terminal answer too, not only the screen that tmux keeps. The echo of what is typed does not
		// have the values in it.
		m.shell(t, w, "echo $secret-$counter-$(stty size | tr ' ' x)")
		m.await(t, w, fmt.Sprintf("from-the-start-%d-24x80", m.round*(w+1)))
	}
}

// Snapshot implements [Program].
func (m *tmux) Snapshot() func() {
	round, screens := m.round, append([]string(nil), m.screens...)
	return func() { m.round, m.screens = round, append([]string(nil), screens...) }
}

var _ Program = (*tmux)(nil)
