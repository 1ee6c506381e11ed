package daemon

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/catalog/catalogtest"
	"stasis/internal/engine"
	"stasis/internal/peer"
	"stasis/internal/require"
)

const stranger = 65533 // another user without rights, whom nobody has allowed

// denied checks the code of an error, and that nothing else came.
func expect(t *testing.T, what string, err error, code connect.Code, says ...string) {
	t.Helper()
	if got := connect.CodeOf(err); err == nil || got != code {
		t.Errorf("%s: %v (%v), expected %v", what, err, got, code)
		return
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q does not say %q", what, err, part)
		}
	}
}

func dumpErr(t *testing.T, c stasisv1connect.CheckpointServiceClient, q *v1.DumpRequest) error {
	t.Helper()
	stream, err := c.Dump(t.Context(), connect.NewRequest(q))
	_, _, err = dumped(t, stream, err)
	return err
}

func restoreErr(t *testing.T, c stasisv1connect.CheckpointServiceClient, q *v1.RestoreRequest) error {
	t.Helper()
	stream, err := c.Restore(t.Context(), connect.NewRequest(q))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
	}
	return stream.Err()
}

// Threat 1: a user whom nobody has allowed gets no answer to anything.
func TestUsersThatAreNotAllowed(t *testing.T) {
	b := serve(t, nil)
	_, err := b.system(t, stranger).Version(t.Context(), connect.NewRequest(&v1.VersionRequest{}))
	expect(t, "version", err, connect.CodePermissionDenied, "daemon.allow_users")
	_, err = b.checkpoints(t, stranger).List(t.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{}))
	expect(t, "list", err, connect.CodePermissionDenied)
	expect(t, "dump", dumpErr(t, b.checkpoints(t, stranger), &v1.DumpRequest{Pid: 2}), connect.CodePermissionDenied)
	for _, path := range []string{"/metrics", "/", "/grpc.health.v1.Health/Check"} {
		response, err := b.httpAs(t, stranger).Get(baseURL + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode == http.StatusOK {
			t.Errorf("%s: status %d", path, response.StatusCode)
		}
	}
	// Where nobody at all is allowed, the socket itself keeps them out.
	alone := serve(t, func(o *Options) { o.Config.Daemon.AllowUsers = nil })
	if info, err := os.Stat(alone.config.Daemon.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info.Mode(), err)
	}
	if conn, err := dial(t.Context(), alone.config.Daemon.Socket, nobody); err == nil {
		conn.Close()
		t.Error("a user could connect")
	}
}

// Threat 2: an allowed user gets at nothing that is root's.
func TestWhatIsRoots(t *testing.T) {
	require.Root(t)
	b := serve(t, nil)
	ctx, s, c := t.Context(), b.system(t, nobody), b.checkpoints(t, nobody)
	if v, err := s.Version(ctx, connect.NewRequest(&v1.VersionRequest{})); err != nil || v.Msg.GetStasis() == "" {
		t.Errorf("version: %v", err)
	}
	if st, err := s.Status(ctx, connect.NewRequest(&v1.StatusRequest{})); err != nil || st.Msg.GetCallerUid() != nobody {
		t.Errorf("status: %v, %v", st, err)
	}
	_, err := s.Config(ctx, connect.NewRequest(&v1.ConfigRequest{}))
	expect(t, "config", err, connect.CodePermissionDenied)
	_, err = s.Stop(ctx, connect.NewRequest(&v1.StopRequest{}))
	expect(t, "stop", err, connect.CodePermissionDenied)
	_, err = s.Check(ctx, connect.NewRequest(&v1.CheckRequest{Full: true}))
	expect(t, "full check", err, connect.CodePermissionDenied)
	_, err = s.Check(ctx, connect.NewRequest(&v1.CheckRequest{Pid: int32(os.Getpid())}))
	expect(t, "check of a process of root's", err, connect.CodePermissionDenied)
	if response, err := b.httpAs(t, nobody).Get(baseURL + "/metrics"); err != nil || response.StatusCode != http.StatusForbidden {
		t.Errorf("metrics: %v, %v", response, err)
	}

	pid := int32(sleeper(t, nobody))
	for name, q := range map[string]*v1.DumpRequest{
		"dir":       {Pid: pid, Dir: filepath.Join(b.dir, "x")},
		"root":      {Pid: pid, Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{Root: "/"}}},
		"join_ns":   {Pid: pid, Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{JoinNs: []string{"net:1"}}}},
		"raw":       {Pid: pid, Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{Raw: []string{"action-script /x"}}}},
		"external":  {Pid: pid, Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{External: []string{"mnt[/]:x"}}}},
		"cgroups":   {Pid: pid, Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{ManageCgroups: "full"}}},
		"linkremap": {Pid: pid, Settings: &v1.DumpSettings{Criu: &v1.CRIUOptions{LinkRemap: true}}},
		"engine":    {Pid: pid, Settings: &v1.DumpSettings{Engine: v1.Engine_ENGINE_CRIU}},
		"dedup":     {Pid: pid, Settings: &v1.DumpSettings{AutoDedup: true}},
	} {
		expect(t, name, dumpErr(t, c, q), connect.CodePermissionDenied)
	}
	if !runs(int(pid)) {
		t.Error("the process runs no more")
	}
}

// Threat 3: names lead nowhere but into the caller's own folder.
func TestNamesStayInside(t *testing.T) {
	require.Root(t)
	b := serve(t, nil)
	c := b.checkpoints(t, nobody)
	pid := int32(sleeper(t, nobody))
	for _, name := range []string{"../x", "/etc/x", "a/b", ".", "..", ".hidden", "-rf", "users", "jobs", strings.Repeat("x", 300), "a\x00b"} {
		expect(t, "name "+strconv.Quote(name), dumpErr(t, c, &v1.DumpRequest{Pid: pid, Name: name}), connect.CodeInvalidArgument)
		if _, err := c.Get(t.Context(), connect.NewRequest(&v1.GetCheckpointRequest{Checkpoint: name})); err == nil {
			t.Errorf("get %q: no error", name)
		}
	}
	if !runs(int(pid)) {
		t.Error("the process runs no more")
	}
}

// Threat 4: others' processes, and own ones with more rights than their user has, are not dumped.
func TestOthersProcesses(t *testing.T) {
	require.Root(t)
	b := serve(t, nil)
	c := b.checkpoints(t, nobody)
	start := func(change func(*exec.Cmd)) int {
		cmd := exec.Command("sleep", "1000")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		change(cmd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd.Process.Pid
	}
	for name, pid := range map[string]int{
		"root's":     sleeper(t, 0),
		"stranger's": sleeper(t, stranger),
		"group":      start(func(c *exec.Cmd) { c.SysProcAttr.Credential.Gid = 0 }),
		"capability": start(func(c *exec.Cmd) { c.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_BIND_SERVICE} }),
		"namespace":  start(func(c *exec.Cmd) { c.SysProcAttr.Cloneflags = unix.CLONE_NEWUTS }),
		"root dir":   start(func(c *exec.Cmd) { c.SysProcAttr.Chroot = chroot(t, b.dir); c.Path = "/sleep" }),
		"not there":  1 << 22,
	} {
		err := dumpErr(t, c, &v1.DumpRequest{Pid: int32(pid), Name: "x"})
		if code := connect.CodeOf(err); name == "not there" && code == connect.CodeInvalidArgument {
			continue
		}
		expect(t, name, err, connect.CodePermissionDenied)
	}
	for _, pid := range []int32{0, 1, -1, int32(os.Getpid())} {
		expect(t, "process "+strconv.Itoa(int(pid)), dumpErr(t, c, &v1.DumpRequest{Pid: pid, Name: "x"}), connect.CodeInvalidArgument)
	}
}

// chroot makes a folder with a static program that sleeps.
func chroot(t *testing.T, dir string) string {
	t.Helper()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "sleep.go")
	if err := os.WriteFile(source, []byte("package main\nimport \"time\"\nfunc main() { time.Sleep(time.Hour) }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "sleep"), source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return root
}

// Threat 5: whose a process is, is looked at again when it is frozen: its number may be another's by then.
func TestProcessChangesMeanwhile(t *testing.T) {
	require.Root(t)
	var frozen error
	b := serve(t, func(o *Options) {
		o.Library = engine.Library{Dump: func(_ context.Context, d stasis.DumpOptions) (*stasis.DumpResult, error) {
			if err := d.AtStep(stasis.StepFreeze); err != nil {
				t.Errorf("the process is the user's: %v", err)
			}
			return nil, stasis.ErrProcess
		}}
	})
	pid := sleeper(t, nobody)
	_ = dumpErr(t, b.checkpoints(t, nobody), &v1.DumpRequest{Pid: int32(pid), Name: "x"})

	// The same with a process that is not the user's any more when it is frozen.
	who := peer.Peer{UID: nobody, GID: nobody}
	e := engine.New(b.config, "", engine.Library{Dump: func(_ context.Context, d stasis.DumpOptions) (*stasis.DumpResult, error) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
		until(t, "the process is gone", func() bool { return unix.Kill(pid, 0) != nil })
		frozen = d.AtStep(stasis.StepFreeze)
		return nil, frozen
	}}, prometheus.NewRegistry())
	if _, err := e.DumpFor(t.Context(), who, stasis.DumpOptions{PID: pid}); err == nil || frozen == nil {
		t.Errorf("the dump went on with a process that is not the user's any more: %v", err)
	}
}

// Threat 6: checkpoints of others are not there, whatever they are called by.
func TestOthersCheckpoints(t *testing.T) {
	require.Root(t)
	b := serve(t, nil)
	catalogtest.Make(t, filepath.Join(b.config.Checkpoint.Dir, "roots"), catalogtest.Options{Command: "vault"})
	catalogtest.Make(t, filepath.Join(b.config.Checkpoint.Dir, "users", strconv.Itoa(stranger), "theirs"), catalogtest.Options{})
	catalogtest.Make(t, filepath.Join(b.config.Checkpoint.Dir, "users", strconv.Itoa(nobody), "mine"), catalogtest.Options{})
	ctx, c, root := t.Context(), b.checkpoints(t, nobody), b.checkpoints(t, 0)

	all, err := root.List(ctx, connect.NewRequest(&v1.ListCheckpointsRequest{}))
	if err != nil || all.Msg.GetTotal() != 3 {
		t.Fatalf("root sees %v, %v", all, err)
	}
	mine, err := c.List(ctx, connect.NewRequest(&v1.ListCheckpointsRequest{}))
	if err != nil || mine.Msg.GetTotal() != 1 || mine.Msg.GetCheckpoints()[0].GetOwnerUid() != nobody {
		t.Fatalf("the user sees %v, %v", mine, err)
	}
	if found, err := c.Get(ctx, connect.NewRequest(&v1.GetCheckpointRequest{Checkpoint: "mine"})); err != nil || found.Msg.GetCheckpoint().GetId() == "" {
		t.Errorf("his own: %v", err)
	}
	refs := []string{"roots", "theirs", "../../roots", "users/" + strconv.Itoa(stranger) + "/theirs"}
	for _, e := range all.Msg.GetCheckpoints() {
		if e.GetOwnerUid() != nobody {
			refs = append(refs, e.GetId(), e.GetId()[:8], e.GetDir(), e.GetDir()+"/", e.GetDir()+"/../"+filepath.Base(e.GetDir()))
		}
	}
	pid := int32(sleeper(t, nobody))
	for _, ref := range refs {
		_, err := c.Get(ctx, connect.NewRequest(&v1.GetCheckpointRequest{Checkpoint: ref}))
		expect(t, "get "+ref, err, connect.CodeNotFound)
		expect(t, "restore "+ref, restoreErr(t, c, &v1.RestoreRequest{Checkpoint: ref}), connect.CodeNotFound)
		_, err = c.Remove(ctx, connect.NewRequest(&v1.RemoveCheckpointsRequest{Checkpoints: []string{"mine", ref}}))
		expect(t, "remove "+ref, err, connect.CodeNotFound)
		expect(t, "parent "+ref, dumpErr(t, c, &v1.DumpRequest{Pid: pid, Name: "child", Parent: ref}), connect.CodeNotFound)
		verify, err := c.Verify(ctx, connect.NewRequest(&v1.VerifyRequest{Checkpoint: ref}))
		if err == nil {
			for verify.Receive() {
			}
			err = verify.Err()
		}
		expect(t, "verify "+ref, err, connect.CodeNotFound)
	}
	pruned, err := c.Prune(ctx, connect.NewRequest(&v1.PruneRequest{Retention: &v1.Retention{KeepLast: 1}}))
	if err != nil || len(pruned.Msg.GetRemoved()) != 0 || len(pruned.Msg.GetKept()) != 1 {
		t.Errorf("prune: %v, %v", pruned, err)
	}
	if again, err := root.List(ctx, connect.NewRequest(&v1.ListCheckpointsRequest{})); err != nil || again.Msg.GetTotal() != 3 {
		t.Errorf("something was deleted: %v, %v", again, err)
	}
	// A stranger's checkpoint is not to be told from one that is not there.
	_, theirs := c.Get(ctx, connect.NewRequest(&v1.GetCheckpointRequest{Checkpoint: filepath.Join(b.config.Checkpoint.Dir, "users", strconv.Itoa(stranger), "theirs")}))
	_, none := c.Get(ctx, connect.NewRequest(&v1.GetCheckpointRequest{Checkpoint: filepath.Join(b.config.Checkpoint.Dir, "users", strconv.Itoa(stranger), "nothing")}))
	if strings.ReplaceAll(theirs.Error(), "theirs", "X") != strings.ReplaceAll(none.Error(), "nothing", "X") {
		t.Errorf("a stranger's: %q; none: %q", theirs, none)
	}
}

// Threat 7: a checkpoint that another than root could have written is restored for nobody.
func TestCheckpointsThatOthersCouldHaveWritten(t *testing.T) {
	require.Root(t)
	var restored bool
	b := serve(t, func(o *Options) {
		o.Library = engine.Library{
			Dump: stasis.Dump,
			Restore: func(context.Context, stasis.RestoreOptions) (*stasis.RestoreResult, error) {
				restored = true
				return nil, stasis.ErrConflict
			},
		}
	})
	root := b.checkpoints(t, 0)
	above := filepath.Join(b.dir, "above")
	dir := filepath.Join(above, "one")
	file := filepath.Join(dir, "manifest.json")
	for name, change := range map[string]func() error{
		"file of a user":         func() error { return os.Chown(file, nobody, 0) },
		"file that all write":    func() error { return os.Chmod(file, 0o602) },
		"file that a group does": func() error { return os.Chmod(filepath.Join(dir, "img-0"), 0o660) },
		"folder of a user":       func() error { return os.Chown(dir, nobody, 0) },
		"folder that all write":  func() error { return os.Chmod(dir, 0o777) },
		"above of a user":        func() error { return os.Chown(above, nobody, 0) },
		"above that all write":   func() error { return os.Chmod(above, 0o777) },
		"shard elsewhere": func() error {
			to := filepath.Join(b.dir, "img")
			_ = os.Remove(to)
			if err := os.Rename(filepath.Join(dir, "img-0"), to); err != nil {
				return err
			}
			return os.Symlink(to, filepath.Join(dir, "img-0"))
		},
		"by a link of a user": func() error {
			if err := os.Rename(above, filepath.Join(b.dir, "real")); err != nil {
				return err
			}
			if err := os.Symlink(filepath.Join(b.dir, "real"), above); err != nil {
				return err
			}
			return os.Lchown(above, nobody, 0)
		},
	} {
		_ = os.RemoveAll(above)
		_ = os.RemoveAll(filepath.Join(b.dir, "real"))
		catalogtest.Make(t, dir, catalogtest.Options{})
		restored = false
		if err := restoreErr(t, root, &v1.RestoreRequest{Checkpoint: dir}); connect.CodeOf(err) != connect.CodeFailedPrecondition || !restored {
			t.Fatalf("%s: before: %v", name, err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		restored = false
		expect(t, name, restoreErr(t, root, &v1.RestoreRequest{Checkpoint: dir, Force: true}), connect.CodePermissionDenied)
		if restored {
			t.Errorf("%s: the restore began", name)
		}
	}
	// The same for an ancestor.
	_ = os.RemoveAll(above)
	parent, child := filepath.Join(above, "parent"), filepath.Join(above, "child")
	catalogtest.Make(t, parent, catalogtest.Options{})
	catalogtest.Make(t, child, catalogtest.Options{Parent: parent})
	if err := restoreErr(t, root, &v1.RestoreRequest{Checkpoint: child}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Fatalf("a chain: %v", err)
	}
	if err := os.Chown(filepath.Join(parent, "img-0"), nobody, 0); err != nil {
		t.Fatal(err)
	}
	expect(t, "ancestor of a user", restoreErr(t, root, &v1.RestoreRequest{Checkpoint: child}), connect.CodePermissionDenied)
}
