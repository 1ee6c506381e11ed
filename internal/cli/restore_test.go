package cli

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"stasis"
)

func TestRestoreOptions(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "one")
	checkpoint(t, dir, map[string]string{"criu": `{"shell_job":true,"tcp_established":true,"external":["a"],"ghost_limit":5}`})
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	checkpoint(t, filepath.Join(b.dir, "named"), nil)
	for _, test := range []struct {
		name string
		args []string
		want stasis.RestoreOptions
		criu *stasis.CRIUOptions // what the dump's become; nil: they stay
	}{
		{"plain", []string{"restore", "process", "--path", dir}, stasis.RestoreOptions{Dir: dir}, nil},
		{"as CRIU", []string{"restore", "-D", dir, "--restore-detached"}, stasis.RestoreOptions{Dir: dir}, nil},
		{"named", []string{"restore", "process", "--path", "named"}, stasis.RestoreOptions{Dir: filepath.Join(b.dir, "named")}, nil},
		{"all of ours", []string{"restore", "process", "--path", dir, "--stream", "2", "--lazy", "--force", "--criu", "/opt/criu"},
			stasis.RestoreOptions{Dir: dir, Streams: 2, Lazy: true, Force: true, CRIUPath: "/opt/criu"}, nil},
		{"as a sibling", []string{"restore", "-D", dir, "-d", "-S"}, stasis.RestoreOptions{Dir: dir, Sibling: true}, nil},
		{"over the dump's", []string{"restore", "process", "--path", dir, "--tcp-close", "--external", "tty[1:2]", "--external", "mnt[b]:/b", "-v2"},
			stasis.RestoreOptions{Dir: dir}, &stasis.CRIUOptions{ShellJob: true, TCPClose: true, External: []string{"tty[1:2]", "mnt[b]:/b"}, GhostLimit: 5, LogLevel: 2}},
		{"switched off", []string{"restore", "process", "--path", dir, "-j=false"},
			stasis.RestoreOptions{Dir: dir}, &stasis.CRIUOptions{TCPEstablished: true, External: []string{"tty[1:2]"}, GhostLimit: 5}},
	} {
		if code := b.run(append(test.args, "--detach")...); code != exitOK || b.restored == nil {
			t.Errorf("%s: exit code %d: %s", test.name, code, b.err.String())
			continue
		}
		got := *b.restored
		if (got.AdjustCRIU == nil) != (test.criu == nil) {
			t.Errorf("%s: the dump's options of CRIU change: %t", test.name, got.AdjustCRIU != nil)
		} else if test.criu != nil {
			criu := stasis.CRIUOptions{ShellJob: true, TCPEstablished: true, External: []string{"tty[1:2]"}, GhostLimit: 5}
			got.AdjustCRIU(&criu)
			criu.InheritFDs = nil
			if !reflect.DeepEqual(&criu, test.criu) {
				t.Errorf("%s:\n got %+v\nwant %+v", test.name, &criu, test.criu)
			}
		}
		got.Progress, got.Resumed, got.AdjustCRIU = nil, nil, nil
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", test.name, got, test.want)
		}
	}
}

func TestInheritedDescriptors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	spec := "fd[" + itoa(int(w.Fd())) + "]:pipe:[77]"
	files, err := inheritFDs([]string{spec})
	if err != nil || len(files) != 1 || files["pipe:[77]"] == nil {
		t.Fatalf("%s: %v, %v", spec, files, err)
	}
	if _, err := files["pipe:[77]"].WriteString("x"); err != nil {
		t.Error(err)
	}
	closeAll(files)
	if _, err := w.WriteString("y"); err != nil {
		t.Errorf("the caller's own descriptor was closed: %v", err)
	}
}

// restoreAs makes the bench's restore start a shell instead, and sets its pid.
func (b *bench) restoreAs(script string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-c", script)
	b.restore = func(_ context.Context, o stasis.RestoreOptions) (*stasis.RestoreResult, error) {
		ready, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
			return nil, err
		}
		r := &stasis.RestoreResult{PID: cmd.Process.Pid, PIDs: []int{cmd.Process.Pid}, Manifest: testManifest()}
		o.Resumed(r)
		return r, nil
	}
	return cmd
}

func TestExitCodeIsPassedOn(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "one")
	checkpoint(t, dir, nil)
	for script, want := range map[string]int{"echo; exit 0": 0, "echo; exit 7": 7, "echo; kill -KILL $$": 137} {
		b.restoreAs(script)
		b.says(want, []string{"restore", "process", "--path", dir}, "restored redis-server")
		if b.out.Len() > 0 {
			t.Errorf("standard output is the program's, and has %q", b.out.String())
		}
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "one")
	checkpoint(t, dir, nil)
	for sig, name := range map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2"} {
		cmd := b.restoreAs("trap 'kill $!; exit 42' " + name + "; sleep 300 & echo; wait")
		resumed := b.restore
		b.restore = func(ctx context.Context, o stasis.RestoreOptions) (*stasis.RestoreResult, error) {
			r, err := resumed(ctx, o)
			b.signals.incoming <- sig
			return r, err
		}
		if code := b.run("restore", "process", "--path", dir); code != 42 {
			t.Errorf("%s: exit code %d: %s", name, code, b.err.String())
			_ = cmd.Process.Kill()
		}
		b.signals.forwardTo(nil)
	}
}

func TestSignalEndsCommand(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	s := listen(cancel)
	defer s.stop()
	s.incoming <- syscall.SIGTERM
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the signal has no effect")
	}
	if by := (*interruption)(nil); !errors.As(context.Cause(ctx), &by) || by.signal != syscall.SIGTERM {
		t.Errorf("ended by %v", context.Cause(ctx))
	}
}

func TestPidfile(t *testing.T) {
	b := newBench(t)
	dir, file := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "pid")
	checkpoint(t, dir, nil)
	b.restore = func(_ context.Context, o stasis.RestoreOptions) (*stasis.RestoreResult, error) {
		r := &stasis.RestoreResult{PID: 4711, PIDs: []int{4711}, Manifest: testManifest()}
		o.Resumed(r)
		return r, nil
	}
	args := []string{"restore", "process", "--path", dir, "-d", "--pidfile", file}
	for _, before := range []string{"", "123456\n"} { // not there, and left by another
		if before != "" {
			if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b.says(exitOK, args)
		if got, err := os.ReadFile(file); err != nil || string(got) != "4711\n" {
			t.Errorf("the file has %q, %v", got, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	b.restore = func(_ context.Context, o stasis.RestoreOptions) (*stasis.RestoreResult, error) {
		o.Resumed(&stasis.RestoreResult{PID: 4711})
		return nil, stasis.ErrDamaged
	}
	b.says(exitDamaged, args)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed restore left its file: %v", err)
	}
}

func TestRestoreTells(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "one")
	checkpoint(t, dir, nil)
	b.says(exitOK, []string{"restore", "process", "--path", dir, "--detach"}, "restored redis-server (4711 and 1 more)", "1.0 MiB of memory from 4 streams")
	if b.out.String() != "4711\n" {
		t.Errorf("standard output has %q", b.out.String())
	}
	b.says(exitOK, []string{"restore", "process", "--path", dir, "--detach", "-q"})
	if b.out.String() != "4711\n" || b.err.Len() > 0 {
		t.Errorf("quiet: %q, %q", b.out.String(), b.err.String())
	}
	var r restoreReport
	b.says(exitOK, []string{"restore", "process", "--path", dir, "--detach", "--lazy", "-o", "json"})
	if b.document(&r); r.PID != 4711 || len(r.PIDs) != 2 || !r.Detached || !r.Lazy || r.Dir != dir || r.BytesMemory != 1<<20 {
		t.Errorf("as JSON: %+v", r)
	}
	b.restore = func(context.Context, stasis.RestoreOptions) (*stasis.RestoreResult, error) {
		return &stasis.RestoreResult{PID: 4711, Manifest: testManifest(), Warnings: []string{"another kernel"}}, nil
	}
	b.says(exitOK, []string{"restore", "process", "--path", dir, "--detach"}, "warning: another kernel")
	if strings.Contains(b.out.String(), "kernel") {
		t.Errorf("standard output has %q", b.out.String())
	}
}
