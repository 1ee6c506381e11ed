package daemon

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/engine"
	"stasis/internal/require"
)

// Threat 8: a user dumps and restores his own process, and what it has open is looked at before it runs: root opened it.
func TestOwnProcess(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	require.Capability(t, "CAP_SYS_RESOURCE", "CRIU reads and sets the limits of another user's process")
	b := serve(t, nil)
	c := b.checkpoints(t, nobody)
	home := filepath.Join(b.dir, "home")
	open := filepath.Join(home, "open")
	for _, err := range []error{
		os.Mkdir(home, 0o700), os.Chown(home, nobody, nobody), os.WriteFile(open, []byte("mine"), 0o600), os.Chown(open, nobody, nobody),
		os.WriteFile(filepath.Join(b.dir, "secret"), []byte("root"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.OpenFile(open, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = "/", file, null, null, []string{"LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })

	if err := dumpErr(t, c, &v1.DumpRequest{Pid: int32(pid), Name: "own"}); err != nil {
		t.Fatal(err)
	}
	<-ended
	folder := filepath.Join(b.config.Checkpoint.Dir, "users", strconv.Itoa(nobody), "own")
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil || st.Uid != 0 || st.Mode&0o077 != 0 {
		t.Errorf("the folder belongs to %d, mode %o: %v", st.Uid, st.Mode, err)
	}

	for what, q := range map[string]*v1.RestoreRequest{"lazy": {Checkpoint: "own", Lazy: true}, "force": {Checkpoint: "own", Force: true}} {
		expect(t, what, restoreErr(t, c, q), connect.CodePermissionDenied)
	}
	// The file becomes something of root's, of the same size and mode.
	if err := os.Rename(open, open+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(b.dir, "secret"), open); err != nil {
		t.Fatal(err)
	}
	expect(t, "with a file of root's", restoreErr(t, c, &v1.RestoreRequest{Checkpoint: "own"}), connect.CodePermissionDenied, "which you may not open")
	if runs(pid) {
		t.Error("something is left of the refused restore")
	}
	if err := os.Rename(open+".away", open); err != nil {
		t.Fatal(err)
	}
	if err := restoreErr(t, c, &v1.RestoreRequest{Checkpoint: "own"}); err != nil {
		t.Fatal(err)
	}
	if !runs(pid) {
		t.Error("the restored process does not run")
	}
	if err := unix.Stat("/proc/"+strconv.Itoa(pid), &st); err != nil || st.Uid != nobody {
		t.Errorf("it runs as user %d: %v", st.Uid, err)
	}
}

// Threat 9: one user cannot take all calls.
func TestCallsOfOneUser(t *testing.T) {
	require.Root(t)
	begun := make(chan struct{}, 10)
	b := serve(t, func(o *Options) {
		o.Config.Daemon.MaxCalls = 2
		o.Library = engine.Library{Dump: func(ctx context.Context, _ stasis.DumpOptions) (*stasis.DumpResult, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
	})
	pid := int32(sleeper(t, nobody))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := b.checkpoints(t, nobody)
	for range 2 {
		go func() {
			stream, err := c.Dump(ctx, connect.NewRequest(&v1.DumpRequest{Pid: pid}))
			begun <- struct{}{}
			if err == nil {
				stream.Receive()
			}
		}()
	}
	until(t, "two dumps are under way", func() bool { dumps, _ := b.engine.Busy(); return dumps == 2 })
	_, err := c.List(t.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{}))
	expect(t, "a third call", err, connect.CodeResourceExhausted, "daemon.max_calls")
	if _, err := b.checkpoints(t, 0).List(t.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{})); err != nil {
		t.Errorf("another user: %v", err)
	}
	cancel()
	until(t, "the calls end", func() bool {
		_, err := c.List(t.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{}))
		return err == nil
	})
}

// Threat 10: one user cannot take all connections.
func TestConnectionsOfOneUser(t *testing.T) {
	require.Root(t)
	b := serve(t, nil)
	for range maxConns {
		conn, err := dial(t.Context(), b.config.Daemon.Socket, nobody)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	one, err := dial(t.Context(), b.config.Daemon.Socket, nobody)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	if _, err := one.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one more connection: %v", err)
	}
	if _, err := b.system(t, 0).Version(t.Context(), connect.NewRequest(&v1.VersionRequest{})); err != nil {
		t.Errorf("another user: %v", err)
	}
}
