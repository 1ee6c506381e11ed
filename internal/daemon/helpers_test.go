package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/config"
	"stasis/internal/require"
)

// nobody is a user without rights.
const nobody = 65534

// bench is a daemon in this process.
type bench struct {
	*Daemon
	config *config.Config
	dir    string // that others may enter
	log    *logged
	served chan error
}

// logged keeps what the daemon logs.
type logged struct {
	panicked atomic.Bool

	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes.Contains(p, []byte("panic")) {
		l.panicked.Store(true)
	}
	if l.text.Len() > 1<<20 {
		return len(p), nil
	}
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// openDir makes a folder that every user may enter, other than those of t.TempDir.
func openDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "stasis-daemon-") //nolint:usetesting // others may not enter that one
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// serve starts a daemon that change has had a look at.
func serve(tb testing.TB, change func(*Options)) *bench {
	tb.Helper()
	dir := openDir(tb)
	c := config.Default()
	c.Checkpoint.Dir = filepath.Join(dir, "checkpoints")
	c.Daemon.Socket = filepath.Join(dir, "s.sock")
	c.Daemon.AllowUsers = []string{strconv.Itoa(nobody)}
	c.Daemon.StopTimeout = 2 * time.Second
	b := &bench{config: c, dir: dir, log: new(logged), served: make(chan error, 1)}
	opts := Options{Config: c, Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&opts)
	}
	listening, err := Listen(&c.Daemon, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if b.Daemon, err = New(opts); err != nil {
		tb.Fatal(err)
	}
	go func() {
		err := b.Serve(listening.Listeners...)
		listening.Close()
		b.served <- err
	}()
	tb.Cleanup(func() {
		b.Abandon()
		select {
		case <-b.served:
		case <-time.After(20 * time.Second):
			tb.Error("the daemon does not stop")
		}
		if tb.Failed() {
			tb.Logf("the daemon's log:\n%s", b.log)
		}
	})
	return b
}

// dial connects as a user: what the kernel tells the daemon is the effective user of the thread that connects.
func dial(ctx context.Context, socket string, uid int) (net.Conn, error) {
	if uid == 0 {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	runtime.LockOSThread() // never unlocked while it is somebody else's
	if err := be(uid); err != nil {
		return nil, err
	}
	conn, err := net.Dial("unix", socket)
	if back := be(0); back != nil {
		return nil, errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return conn, err
}

// be makes this thread another user's; the real ids stay root's.
func be(uid int) error {
	const same = ^uintptr(0)
	if uid != 0 {
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, same, uintptr(uid), same); e != 0 {
			return e
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); e != 0 {
		return e
	}
	if uid == 0 {
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, same, 0, same); e != 0 {
			return e
		}
	}
	return nil
}

// httpAs calls as a user.
func (b *bench) httpAs(tb testing.TB, uid int) *http.Client {
	tb.Helper()
	if uid != 0 {
		require.Root(tb)
	}
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, b.config.Daemon.Socket, uid)
	}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

const baseURL = "http://stasis"

func (b *bench) checkpoints(t *testing.T, uid int) stasisv1connect.CheckpointServiceClient {
	t.Helper()
	return stasisv1connect.NewCheckpointServiceClient(b.httpAs(t, uid), baseURL)
}

func (b *bench) system(t *testing.T, uid int) stasisv1connect.SystemServiceClient {
	t.Helper()
	return stasisv1connect.NewSystemServiceClient(b.httpAs(t, uid), baseURL)
}

// sleeper starts a program that does nothing, as a user. The end of the test ends it, also after a restore.
func sleeper(t *testing.T, uid int) int {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", null, null, null
	cmd.Env = []string{"LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if uid != 0 {
		require.Root(t)
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		<-ended
	})
	return pid
}

// runs says whether a process is there, not ended, not stopped, and nobody traces it.
func runs(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	return strings.Contains(string(text), "TracerPid:\t0\n") && !strings.Contains(string(text), "State:\tZ") && !strings.Contains(string(text), "State:\tT")
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !is() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// compressing sends its requests compressed.
func (b *bench) compressing(t *testing.T) stasisv1connect.CheckpointServiceClient {
	t.Helper()
	return stasisv1connect.NewCheckpointServiceClient(b.httpAs(t, 0), baseURL, connect.WithSendGzip())
}
