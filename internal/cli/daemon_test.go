package cli

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/client"
	"stasis/internal/config"
	"stasis/internal/require"
)

func TestConfigShow(t *testing.T) {
	b := newBench(t)
	var r configReport
	if code := b.run("config", "show", "-o", "json"); code != exitOK {
		t.Fatalf("exit code %d: %s", code, b.err.String())
	}
	b.document(&r)
	found := false
	for _, v := range r.Values {
		if v.Key == "checkpoint.dir" {
			found = v.Value == b.dir && v.Origin == "STASIS_CHECKPOINT_DIR"
		}
	}
	if !found || len(r.Values) != len(config.Settings()) {
		t.Errorf("the settings are %+v", r)
	}
	b.run("config", "show")
	for _, part := range []string{"SETTING", "daemon.socket", "/run/stasis/stasis.sock", "default"} {
		if !strings.Contains(b.out.String(), part) {
			t.Errorf("%q lacks %q", b.out.String(), part)
		}
	}
}

func TestConfigInit(t *testing.T) {
	b := newBench(t)
	file := filepath.Join(t.TempDir(), "etc", "config.yaml")
	if code := b.run("config", "init", file); code != exitOK {
		t.Fatalf("exit code %d: %s", code, b.err.String())
	}
	if c, err := config.Load(file, nil); err != nil || c.Checkpoint.Dir != config.Default().Checkpoint.Dir {
		t.Errorf("what it wrote cannot be read: %v", err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b.says(exitConflict, []string{"config", "init", file}, "already exists")
	if code := b.run("config", "init", "-"); code != exitOK || b.out.String() != string(before) {
		t.Errorf("to standard output: %d, %q", code, b.out.String())
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("it was overwritten: %v", err)
	}
	// It helps also where the configuration is broken.
	if err := os.WriteFile(file, []byte("chekpoint: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.says(exitInput, []string{"--config", file, "config", "show"}, "did you mean")
	if code := b.run("--config", file, "config", "init", file+".new"); code != exitOK {
		t.Errorf("with a broken configuration: %d, %s", code, b.err.String())
	}
}

func TestNoDaemon(t *testing.T) {
	b := newBench(t)
	socket := filepath.Join(t.TempDir(), "none.sock")
	b.environ = append(b.environ, "STASIS_DAEMON_SOCKET="+socket)
	b.says(exitFailure, []string{"daemon", "status"})
	if !strings.Contains(b.out.String(), "no daemon runs on "+socket) {
		t.Errorf("it says %q", b.out.String())
	}
	b.says(exitInput, []string{"daemon", "stop"}, "no daemon answers", "stasis daemon start")
	b.says(exitInput, []string{"daemon", "status", "--socket", "relative"}, "absolute path")
	b.says(exitInput, []string{"daemon", "strt"}, "did you mean start")
}

const asProgram = "STASIS_TEST_AS_PROGRAM"

// TestMain runs the tests, or the program where this process was started as one.
func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(Run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// TestDaemonLives starts the real program as a daemon, asks it, upgrades it by killing it, and stops it; then a command starts one on demand.
func TestDaemonLives(t *testing.T) {
	require.Root(t)
	dir := t.TempDir()
	stasis, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "run", "s.sock")
	env := append(os.Environ(), asProgram+"=1", "STASIS_CONFIG="+emptyConfig(t), "STASIS_DAEMON_SOCKET="+socket, "STASIS_LOG_FILE="+filepath.Join(dir, "log"),
		"STASIS_CHECKPOINT_DIR="+filepath.Join(dir, "checkpoints"), "STASIS_DAEMON_IDLE_TIMEOUT=300ms", "STASIS_JOBS_DIR="+filepath.Join(dir, "jobs"),
		"STASIS_JOBS_STATE="+filepath.Join(dir, "state.db"))
	run := func(code int, args ...string) string {
		t.Helper()
		cmd := exec.Command(stasis, args...)
		cmd.Env = env
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("stasis %s: exit code %d, not %d: %s", strings.Join(args, " "), got, code, out)
		}
		return string(out)
	}
	t.Cleanup(func() {
		cmd := exec.Command(stasis, "daemon", "stop")
		cmd.Env = env
		_ = cmd.Run() // mostly stopped already
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("the daemon's log:\n%s", text)
		}
	})
	run(exitFailure, "daemon", "status")
	run(exitOK, "daemon", "start")
	if out := run(exitOK, "daemon", "start"); !strings.Contains(out, "runs already") {
		t.Errorf("started twice: %s", out)
	}
	out := run(exitOK, "daemon", "status", "-o", "json")
	if !strings.Contains(out, `"running": true`) || !strings.Contains(out, socket) {
		t.Errorf("the status is %s", out)
	}
	holder, err := os.ReadFile(socket + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := parsePID(string(holder))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitForEnd(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	run(exitOK, "daemon", "start")
	run(exitOK, "daemon", "stop")
	run(exitFailure, "daemon", "status")

	out = run(exitOK, "daemon", "check", "-o", "json") // starts one
	if !strings.Contains(out, `"name": "checkpoints"`) {
		t.Errorf("the check says %s", out)
	}
	end := time.Now().Add(20 * time.Second)
	for {
		if _, err := os.Stat(socket); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the daemon on demand does not leave")
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestSocketActivation: systemd has made the socket; the daemon serves on it, says that it is ready, and leaves it there.
func TestSocketActivation(t *testing.T) {
	require.Root(t)
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "handed.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	// LISTEN_PID is that of the daemon itself, which only a shell in between can know.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" daemon start --foreground`, self)
	cmd.ExtraFiles = []*os.File{file}
	cmd.Env = append(os.Environ(), asProgram+"=1", "STASIS_CONFIG="+emptyConfig(t), "STASIS_DAEMON_SOCKET="+filepath.Join(dir, "own.sock"),
		"STASIS_CHECKPOINT_DIR="+filepath.Join(dir, "checkpoints"), "STASIS_JOBS_DIR="+filepath.Join(dir, "jobs"),
		"STASIS_JOBS_STATE="+filepath.Join(dir, "state.db"), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	file.Close()
	defer func() { _ = cmd.Process.Kill() }()
	says := func(want string) {
		t.Helper()
		_ = notify.SetReadDeadline(time.Now().Add(20 * time.Second))
		text := make([]byte, 100)
		if n, err := notify.Read(text); err != nil || string(text[:n]) != want {
			t.Errorf("it says %q to systemd, not %q: %v", text[:n], want, err)
		}
	}
	says("READY=1")
	c, err := client.Connect(t.Context(), client.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	says("STOPPING=1\nEXTEND_TIMEOUT_USEC=180000000") // twice the minute of daemon.stop_timeout, and a margin
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, &log)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("systemd's socket is gone: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "own.sock")); err == nil {
		t.Error("it made a socket of its own as well")
	}
}
