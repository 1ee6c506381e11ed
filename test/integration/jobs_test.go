package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"stasis/internal/require"
)

// jobBench is a machine of its own as far as jobs are concerned: folders, a socket, and a daemon that commands start on demand.
type jobBench struct {
	*testing.T
	stasis string
	env    []string
}

func newJobBench(t *testing.T) *jobBench {
	t.Helper()
	require.Root(t)
	require.CRIU(t)
	dir := t.TempDir()
	b := &jobBench{T: t, stasis: buildStasis(t), env: []string{
		"STASIS_CONFIG=" + filepath.Join(dir, "none.yaml"), "STASIS_DAEMON_SOCKET=" + filepath.Join(dir, "sock"),
		"STASIS_CHECKPOINT_DIR=" + filepath.Join(dir, "checkpoints"), "STASIS_JOBS_DIR=" + filepath.Join(dir, "jobs"),
		"STASIS_JOBS_STATE=" + filepath.Join(dir, "state.db"), "STASIS_DAEMON_IDLE_TIMEOUT=2s",
		"PATH=" + os.Getenv("PATH"), "TERM=dumb",
	}}
	if err := os.WriteFile(filepath.Join(dir, "none.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, j := range b.ps() {
			b.run("rm", "job", j.Spec.Name, "--force")
		}
		b.run("daemon", "stop")
	})
	return b
}

func (b *jobBench) command(args ...string) *exec.Cmd {
	cmd := exec.Command(b.stasis, args...)
	cmd.Env = b.env
	return cmd
}

// run runs a command that has to succeed.
func (b *jobBench) run(args ...string) string {
	b.Helper()
	out, err := b.command(args...).CombinedOutput()
	if err != nil {
		b.Fatalf("stasis %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// listedJob is a job as programs get it.
type listedJob struct {
	PID         int    `json:"pid"`
	State       string `json:"state"`
	Checkpoints int    `json:"checkpoints"`
	Restores    int    `json:"restores"`
	Spec        struct {
		Name string `json:"name"`
	} `json:"spec"`
	LastCheckpoint struct {
		Name string `json:"name"`
	} `json:"last_checkpoint"`
}

func (b *jobBench) ps() []listedJob {
	b.Helper()
	var list []listedJob
	if err := json.Unmarshal([]byte(b.run("ps", "-o", "json")), &list); err != nil {
		b.Fatal(err)
	}
	return list
}

// until asks for the job until it is as wanted.
func (b *jobBench) until(what string, wanted func(listedJob) bool) listedJob {
	b.Helper()
	var list []listedJob
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		if list = b.ps(); len(list) == 1 && wanted(list[0]) {
			return list[0]
		}
	}
	b.Fatalf("%s: not within 30 s, but %+v\n%s", what, list, b.run("events"))
	return listedJob{}
}

func (b *jobBench) daemon() int {
	b.Helper()
	var status struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(b.run("daemon", "status", "-o", "json")), &status); err != nil || status.PID == 0 {
		b.Fatalf("%+v, %v", status, err)
	}
	return status.PID
}

// The README's promise, by the program itself: a computation is killed with SIGKILL and is back; the daemon is killed, and nothing happens to
// the computation; somebody works in its terminal before and after.
func TestJobFromTheCommandLine(t *testing.T) {
	b := newJobBench(t)
	script := `i=0; while :; do i=$((i+1)); echo "n $i"; sleep 0.02; if read -t 0; then read line; echo "got $line"; fi; done`
	b.run("run", "--name", "sum", "--every", "300ms", "--keep-last", "3", "--restart", "on-failure", "--", "bash", "-c", script)
	running := func(j listedJob) bool {
		return j.State == "running" || j.State == "dumping"
	}
	first := b.until("two checkpoints", func(j listedJob) bool { return running(j) && j.Checkpoints >= 2 })

	killed := time.Now()
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.until("it is back", func(j listedJob) bool { return running(j) && j.Restores == 1 && j.PID == first.PID })
	t.Logf("back %v after SIGKILL, as the command line sees it", time.Since(killed).Round(time.Millisecond))
	b.attach("sum", "after a restore")

	if err := syscall.Kill(b.daemon(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	before := b.until("it runs on under a new daemon", func(j listedJob) bool { return running(j) && j.PID == first.PID && j.Restores == 1 })
	b.until("it is checkpointed again", func(j listedJob) bool {
		return j.LastCheckpoint.Name != before.LastCheckpoint.Name && len(j.LastCheckpoint.Name) > 0
	})
	b.attach("sum", "after a new daemon")

	if out := b.run("evacuate", "--deadline", "20s"); !strings.Contains(out, "1 safe, 0 not") {
		t.Errorf("evacuate says %s", out)
	}
	b.run("daemon", "stop")
	if out := b.run("events", "sum"); !strings.Contains(out, "(stop)") || !strings.Contains(out, "looked after again") {
		t.Errorf("events are\n%s", out)
	}
	if out := b.run("logs", "sum", "-n", "3"); strings.Count(out, "\n") < 3 || len(out) > 1000 { // it goes on meanwhile
		t.Errorf("the last three lines are %q", out)
	}
	b.run("kill", "sum", "--signal", "KILL")
	if out := b.run("ps"); !strings.Contains(out, "killed") {
		t.Errorf("ps says\n%s", out)
	}
	b.run("restore", "job", "sum")
	b.until("it is back by hand", running)
}

// attach works in the job's terminal and leaves it by its keys.
func (b *jobBench) attach(job, line string) {
	b.Helper()
	cmd := b.command("attach", job)
	terminal, err := pty.Start(cmd)
	if err != nil {
		b.Fatal(err)
	}
	defer terminal.Close()
	seen := newScreen(terminal)
	seen.until(b, "attached to job")
	fmt.Fprintf(terminal, "%s\r", line)
	seen.until(b, "got "+line)
	fmt.Fprint(terminal, "\x10\x11")
	seen.until(b, "which goes on")
	if err := cmd.Wait(); err != nil {
		b.Errorf("leaving the job: %v", err)
	}
}

// screen is what a terminal has shown.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func newScreen(from io.Reader) *screen {
	s := &screen{}
	go func() { _, _ = io.Copy(s, from) }()
	return s
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) until(b *jobBench, text string) {
	b.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(5 * time.Millisecond) {
		s.mu.Lock()
		shown := s.text.String()
		s.mu.Unlock()
		if strings.Contains(shown, text) {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%q does not appear, but %q", text, shown[max(0, len(shown)-500):])
		}
	}
}
