package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/codec"
	"stasis/internal/health"
	"stasis/internal/image"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// bench is a command line whose library does nothing but note what it was asked for.
type bench struct {
	*app
	t        *testing.T
	out, err bytes.Buffer
	dir      string // the default folder

	dumped   *stasis.DumpOptions
	restored *stasis.RestoreOptions
}

func newBench(t *testing.T) *bench {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	b := &bench{t: t, dir: filepath.Join(t.TempDir(), "checkpoints")}
	ctx, cancel := context.WithCancelCause(context.Background())
	b.app = &app{
		in: null, out: &b.out, err: &b.err,
		environ: []string{"STASIS_CONFIG=" + emptyConfig(t), "STASIS_CHECKPOINT_DIR=" + b.dir},
		signals: listen(cancel),
		machine: func(context.Context, string) []health.Result { return nil },
		process: func(context.Context, int) []health.Result { return nil },
	}
	b.dump = func(_ context.Context, o stasis.DumpOptions) (*stasis.DumpResult, error) {
		b.dumped = &o
		return &stasis.DumpResult{Dir: o.Dir, After: stasis.AfterKill, Manifest: testManifest()}, nil
	}
	b.restore = func(_ context.Context, o stasis.RestoreOptions) (*stasis.RestoreResult, error) {
		b.restored = &o
		return &stasis.RestoreResult{PID: 4711, PIDs: []int{4711, 4712}, Manifest: testManifest(), BytesMemory: 1 << 20}, nil
	}
	t.Cleanup(func() { b.signals.stop(); cancel(nil); <-ctx.Done() })
	return b
}

func emptyConfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func testManifest() *stasis.Manifest {
	return &stasis.Manifest{
		Stasis: "1.2.3", Name: "redis-one", Kind: image.KindFull, Engine: "blind", RootPID: 4711, Codec: "lz4", Shards: make([]image.Shard, 4),
		Processes: []image.Process{
			{PID: 4711, PPID: 1, Comm: "redis-server", Cmdline: []string{"redis-server", "*:6379"}, State: "S", Threads: []int{4711, 4713},
				Mappings: map[string]image.Mapping{"heap": {Count: 1, Bytes: 5 << 20}, "file": {Count: 9, Bytes: 1 << 20}},
				Files:    []image.OpenFile{{FD: 0, Path: "/dev/null"}, {FD: 1, Path: "evil\x1b[2J"}},
				Sockets:  []image.Socket{{FD: 6, Protocol: "tcp", Local: "0.0.0.0:6379", State: "listen"}}},
			{PID: 4712, PPID: 4711, Comm: "child", State: "Z"},
		},
		Figures: image.Figures{PauseUS: 8200, BytesMemory: 1 << 20, BytesStored: 1 << 18, Rounds: []image.Round{{Pages: 256, Bytes: 1 << 20, US: 1000}, {Pages: 2, Bytes: 8192, US: 100}}},
	}
}

// run runs a command and returns its exit code.
func (b *bench) run(args ...string) int {
	b.out.Reset()
	b.err.Reset()
	b.dumped, b.restored = nil, nil
	b.output, b.quiet, b.criuPath, b.configPath = "", false, "", ""
	return b.app.run(b.t.Context(), args)
}

// says runs a command and checks its exit code and what standard error says.
func (b *bench) says(code int, args []string, parts ...string) {
	b.t.Helper()
	if got := b.run(args...); got != code {
		b.t.Errorf("%v: exit code %d, not %d: %s", args, got, code, b.err.String())
	}
	for _, part := range parts {
		if !strings.Contains(b.err.String(), part) {
			b.t.Errorf("%v: %q lacks %q", args, b.err.String(), part)
		}
	}
}

// document decodes the one JSON document of standard output.
func (b *bench) document(into any) {
	b.t.Helper()
	decoder := json.NewDecoder(&b.out)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		b.t.Fatalf("decode the output: %v", err)
	}
	if decoder.More() {
		b.t.Fatal("more than one document")
	}
}

// checkpoint writes a small checkpoint into a folder.
func checkpoint(t *testing.T, dir string, options map[string]string) {
	t.Helper()
	target, err := store.CreateFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeCheckpoint(target, options); err != nil {
		t.Fatal(err)
	}
}

func writeCheckpoint(target store.Target, options map[string]string) error {
	c, err := codec.New("lz4", 0)
	if err != nil {
		return err
	}
	w, err := writer.New(target, writer.Options{Shards: 2, Codec: c, ID: [16]byte{1}})
	if err != nil {
		return err
	}
	page := bytes.Repeat([]byte("abcd"), image.PageSize/4)
	pages := image.Range{Start: 0x10000, End: 0x10000 + 3*image.PageSize}
	data := append(append(append([]byte(nil), page...), make([]byte, image.PageSize)...), page...)
	if err := w.PutPages(0, image.PageBlock{PID: 4711, Extents: []image.Extent{{Addr: pages.Start, Pages: 3}}, Data: data}); err != nil {
		return errors.Join(err, w.Abort())
	}
	if err := w.PutFile("core-4711.img", strings.NewReader("state")); err != nil {
		return errors.Join(err, w.Abort())
	}
	m := testManifest()
	m.Options = options
	return w.Finish(map[int][]image.Range{4711: {pages}}, m)
}

func TestBadInput(t *testing.T) {
	b := newBench(t)
	missing := filepath.Join(t.TempDir(), "no", "where")
	for _, test := range []struct {
		args []string
		says []string
	}{
		{[]string{"dmup"}, []string{`unknown command "dmup"`, "or dump?"}},
		{[]string{"dump", "prcess", "12"}, []string{`unknown command "prcess"`, "did you mean process?"}},
		{[]string{"dump", "4711"}, []string{"stasis dump process 4711"}},
		{[]string{"dump"}, []string{"which process?"}},
		{[]string{"dump", "--pid", "4711"}, []string{"--images-dir is missing"}},
		{[]string{"dump", "process"}, []string{"process id is missing", "dump process PID"}},
		{[]string{"dump", "process", "redis"}, []string{`"redis" is no process id`, "pgrep"}},
		{[]string{"dump", "process", "-4"}, []string{"unknown shorthand flag"}},
		{[]string{"dump", "process", "0"}, []string{"greater than 0"}},
		{[]string{"dump", "process", "1"}, []string{"process 1"}},
		{[]string{"dump", "process", "99999999999999999999"}, []string{"no process id"}},
		{[]string{"dump", "process", "12", "13"}, []string{`unexpected argument "13"`}},
		{[]string{"dump", "process", "12", "--manage-cgroups", "full"}, []string{"--manage-cgroups=full"}},
		{[]string{"dump", "process", "12", "--dir", "/tmp/x", "--name", "y"}, []string{"--dir and --name", "choose one"}},
		{[]string{"dump", "process", "12", "--dir", missing}, []string{filepath.Dir(missing), "make it first"}},
		{[]string{"dump", "process", "12", "--name", "a/b"}, []string{"without a slash"}},
		{[]string{"dump", "process", "12", "--name", ".."}, []string{"--name"}},
		{[]string{"dump", "process", "12", "--stream", "0"}, []string{"1 to 1024"}},
		{[]string{"dump", "process", "12", "--stream", "-1"}, []string{"1 to 1024"}},
		{[]string{"dump", "process", "12", "--stream", "many"}, []string{"--stream"}},
		{[]string{"dump", "process", "12", "--compression", "lzma"}, []string{"lz4, zstd"}},
		{[]string{"dump", "process", "12", "--compression", "lz4", "--level", "20"}, []string{"no level 20"}},
		{[]string{"dump", "process", "12", "--compression", "none", "--level", "1"}, []string{"no levels"}},
		{[]string{"dump", "process", "12", "-R", "-s"}, []string{"--leave-running and --leave-stopped"}},
		{[]string{"dump", "process", "12", "--tcp-close", "--tcp-established"}, []string{"choose one"}},
		{[]string{"dump", "process", "12", "--ghost-limit", "big"}, []string{"64K"}},
		{[]string{"dump", "process", "12", "--ghost-limit", "5G"}, []string{"at most"}},
		{[]string{"dump", "process", "12", "--manage-cgroups=most"}, []string{"strict"}},
		{[]string{"dump", "process", "12", "--network-lock", "none"}, []string{"nftables"}},
		{[]string{"dump", "process", "12", "--cpu-cap=gpu"}, []string{"fpu"}},
		{[]string{"dump", "process", "12", "--join-ns", "net"}, []string{"KIND:PID"}},
		{[]string{"dump", "process", "12", "--action-script", missing}, []string{missing}},
		{[]string{"dump", "process", "12", "--engine", "steam"}, []string{"lazy-pages"}},
		{[]string{"dump", "process", "12", "--max-rounds", "0"}, []string{"at least 1"}},
		{[]string{"dump", "process", "12", "--max-pause", "0s"}, []string{"2ms"}},
		{[]string{"dump", "process", "12", "--max-pause", "5"}, []string{"--max-pause"}},
		{[]string{"dump", "process", "12", "-v9"}, []string{"0 to 4"}},
		{[]string{"dump", "process", "12", "--leave-runnning"}, []string{"did you mean --leave-running?"}},
		{[]string{"dump", "process", "12", "-o", "xml"}, []string{"text or json"}},
		{[]string{"dump", "process", "12", "--config", missing}, []string{missing}},
		{[]string{"dump", "process", "12", "--pidfile", "/x"}, []string{"unknown flag"}},
		{[]string{"update"}, []string{"the name of the job is missing"}},
		{[]string{"update", "sum"}, []string{"nothing to change", "--every 10m"}},
		{[]string{"update", "sum", "--every", "10m", "--no-schedule"}, []string{"choose one"}},
		{[]string{"update", "sum", "--every", "0"}, []string{"positive time", "--no-schedule"}},
		{[]string{"update", "sum", "--cron", ""}, []string{"--cron is empty", "leave the flag out"}},
		{[]string{"update", "sum", "--restart", "never"}, []string{"on-failure"}},
		{[]string{"update", "sum", "--stream", "4"}, []string{"unknown flag"}},
		{[]string{"restore"}, []string{"--images-dir is missing"}},
		{[]string{"restore", "process"}, []string{"--path is missing"}},
		{[]string{"restore", "process", "/x"}, []string{`unexpected argument "/x"`}},
		{[]string{"restore", "process", "--path", "nothing"}, []string{"no checkpoint nothing", b.dir}},
		{[]string{"restore", "process", "--path", "x", "--stream", "0"}, []string{"leave it out"}},
		{[]string{"restore", "process", "--path", "x", "--inherit-fd", "3:pipe"}, []string{"fd[N]:KEY"}},
		{[]string{"restore", "process", "--path", "x", "--inherit-fd", "fd[987]:pipe:[1]"}, []string{"987 is not open"}},
		{[]string{"restore", "process", "--path", "x", "--inherit-fd", "fd[0]:a", "--inherit-fd", "fd[1]:a"}, []string{"twice"}},
		{[]string{"restore", "process", "--path", "x", "--pidfile", missing}, []string{"--pidfile", missing}},
		{[]string{"verify"}, []string{"the checkpoint is missing"}},
		{[]string{"verify", missing}, []string{missing}},
		{[]string{"verify", ""}, []string{"empty"}},
		{[]string{"inspect", t.TempDir()}, []string{"no checkpoint", "manifest.json"}},
		{[]string{"inspect", "a", "b"}, []string{`unexpected argument "b"`}},
		{[]string{"checkpoints", missing}, []string{missing}},
		{[]string{"checkpoints", "a", "b"}, []string{`unexpected argument "b"`}},
		{[]string{"rm"}, []string{"which checkpoint?"}},
		{[]string{"rm", ""}, []string{"empty"}},
		{[]string{"rm", "nothing"}, []string{"no checkpoint nothing"}},
		{[]string{"rm", t.TempDir()}, []string{"no checkpoint"}},
		{[]string{"prune", t.TempDir()}, []string{"--keep-last"}},
		{[]string{"prune", missing, "--keep-last", "1"}, []string{missing}},
		{[]string{"prune", "--keep-last", "few"}, []string{"-1 for all"}},
		{[]string{"prune", "--keep-daily", "-2"}, []string{"-1 for all"}},
		{[]string{"prune", "--keep-within", "5 weeks"}, []string{"7d, 1y6m"}},
		{[]string{"prune", "--keep-last", "1", "--group-by", "user"}, []string{"program, pid, none"}},
		{[]string{"prune", "--max-size", "big"}, []string{"64K"}},
		{[]string{"dedup"}, []string{"the checkpoint is missing"}},
		{[]string{"dedup", t.TempDir()}, []string{"no checkpoint"}},
		{[]string{"compact"}, []string{"the checkpoint is missing"}},
		{[]string{"compact", "x", "--dir", "/tmp/y", "--name", "z"}, []string{"choose one"}},
		{[]string{"compact", "x", "--name", "a/b"}, []string{"without a slash"}},
		{[]string{"compact", "x", "--level", "3"}, []string{"--compression"}},
		{[]string{"compact", "x", "--compression", "lz4", "--level", "40"}, []string{"no level 40"}},
		{[]string{"compact", "x", "--stream", "-1"}, []string{"1 to 1024"}},
		{[]string{"compact", "x", "--dir", missing}, []string{"make it first"}},
		{[]string{"compact", t.TempDir()}, []string{"no checkpoint"}},
		// A variable of a script that is not set must not mean something else.
		{[]string{"dump", "process", "12", "--dir="}, []string{"--dir is empty", "DIR"}},
		{[]string{"dump", "process", "12", "--name", ""}, []string{"--name is empty"}},
		{[]string{"compact", "x", "--dir", ""}, []string{"--dir is empty"}},
		{[]string{"--config", "", "version"}, []string{"--config is empty"}},
		{[]string{"run", "--name", "", "--", "sleep"}, []string{"--name is empty"}},
		// Numbers and times, without the words of the parser.
		{[]string{"dump", "process", "12", "--stream", "x"}, []string{"--stream \"x\": it is a whole number (see"}},
		{[]string{"dump", "process", "12", "--max-pause", "5"}, []string{"--max-pause \"5\"", "with its unit, such as 500ms"}},
		{[]string{"dump", "process", "12", "--timeout", "-1"}, []string{"from 0 to 4294967295"}},
		{[]string{"page-server", "-D", "x", "--port", "99999"}, []string{"from 0 to 65535"}},
		{[]string{"dump", "process", "12", "--leave-running=often"}, []string{"true or false"}},
		{[]string{"dump", "process", "4194305"}, []string{"no process has a greater one"}},
		{[]string{"manage", "4294967301"}, []string{"no process has a greater one"}}, // not process 5
		{[]string{"compact", "x", "--stream", "0"}, []string{"1 to 1024"}},
		{[]string{"pre-dump", "process", "12", "--level", "99"}, []string{"no level 99"}},
		{[]string{"page-server", "-D", "x", "--stream", "0"}, []string{"1 to 1024"}},
		{[]string{"restore", "process", "one"}, []string{"--path one"}},
		{[]string{"checkpoints", "--job", "nobody"}, []string{"no job nobody"}},
		{[]string{"checkpoints", "/dev/null"}, []string{"no folder"}},
		{[]string{"help", "resotre"}, []string{"did you mean restore"}},
		{[]string{"help", "dump", "nothing"}, []string{"unknown command"}},
		{[]string{"config", "init", ""}, []string{"empty"}},
		{[]string{"run", "--nice", "20", "--", "sleep"}, []string{"0 to 19"}},
		{[]string{"run", "--nice", "-1", "--", "sleep"}, []string{"0 to 19"}},
		{[]string{"run", "--stream", "0", "--", "sleep"}, []string{"1 to 1024"}},
		{[]string{"run", "--keep-last", "-3", "--", "sleep"}, []string{"--keep-last -3", "at least 1"}},
		{[]string{"run", "--max-retries", "0", "--", "sleep"}, []string{"at least 1"}},
		{[]string{"run", "--max-chain", "0", "--", "sleep"}, []string{"at least 1"}},
		{[]string{"run", "--every", "0s", "--", "sleep"}, []string{"--every 0s", "more than 0"}},
		{[]string{"run", "--restart-delay", "-1s", "--", "sleep"}, []string{"more than 0"}},
		{[]string{"run", "-e", "FOO", "--", "sleep"}, []string{"NAME=VALUE"}},
		{[]string{"run", "-e", "=x", "--", "sleep"}, []string{"NAME=VALUE"}},
		{[]string{"events", "--since", "-5m"}, []string{"more than 0"}},
		{[]string{"logs", "sim", "-n", "-1"}, []string{"number of lines"}},
		{[]string{"kill"}, []string{"the name of the job is missing", "stasis kill --help"}},
		{[]string{"check", "x"}, []string{"no process id"}},
		{[]string{"check", "1", "2"}, []string{"unexpected"}},
		{[]string{"man"}, []string{"the folder is missing"}},
		{[]string{"man", "/dev/null/x"}, []string{"make the folder"}},
		{[]string{"completion", "dosh"}, []string{"unknown command"}},
	} {
		b.says(exitInput, test.args, test.says...)
		if b.dumped != nil || b.restored != nil {
			t.Errorf("%v: the library was called", test.args)
		}
		if b.out.Len() > 0 {
			t.Errorf("%v: standard output has %q", test.args, b.out.String())
		}
		if text := b.err.String(); !strings.HasPrefix(text, "stasis: ") || strings.Count(text, "\n") != 1 {
			t.Errorf("%v: not one line of the usual form: %q", test.args, text)
		}

		var f failure
		if code := b.run(append([]string{"--output=json"}, test.args...)...); code != exitInput {
			t.Errorf("%v as JSON: exit code %d", test.args, code)
		} else if b.document(&f); f.Kind != "input" || f.ExitCode != exitInput || f.Error == "" {
			t.Errorf("%v as JSON: %+v", test.args, f)
		}
	}
	if _, err := os.Stat(b.dir); err == nil {
		t.Error("bad input made the default folder")
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	b := newBench(t)
	b.environ = append(b.environ, "STASIS_CHECKPOINT_LEVELL=3")
	b.says(exitInput, []string{"version"}, "STASIS_CHECKPOINT_LEVEL?")
	if code := b.run("__complete", "dump", "process", "--compression", ""); code != exitOK || !strings.Contains(b.out.String(), "zstd") {
		t.Errorf("completion with a bad configuration: %d, %q", code, b.out.String())
	}
}

func TestErrorsOfTheLibrary(t *testing.T) {
	b := newBench(t)
	for _, test := range []struct {
		err  error
		code int
		kind string
	}{
		{errors.New("disk on fire"), exitFailure, "failure"},
		{errors.Join(stasis.ErrInput, errors.New("x")), exitInput, "input"},
		{errors.Join(stasis.ErrDamaged, errors.New("x")), exitDamaged, "damaged"},
		{&image.VersionError{Format: 9, Stasis: "9.0"}, exitDamaged, "damaged"},
		{&image.DamageError{Checkpoint: "/c", Shard: "img-0", Offset: 64, Why: "a flipped bit"}, exitDamaged, "damaged"},
		{errors.Join(stasis.ErrConflict, errors.New("x")), exitConflict, "conflict"},
		{errors.Join(stasis.ErrBusy, errors.New("x")), exitConflict, "conflict"},
		{errors.Join(stasis.ErrProcess, errors.New("x")), exitProcess, "process"},
		{&interruption{2}, 130, "interrupted"},
	} {
		b.dump = func(context.Context, stasis.DumpOptions) (*stasis.DumpResult, error) { return nil, test.err }
		if code := b.run("dump", "process", "12", "--dir", t.TempDir()); code != test.code || !strings.HasPrefix(b.err.String(), "stasis: ") {
			t.Errorf("%v: exit code %d, %q", test.err, code, b.err.String())
		}
		var f failure
		b.run("dump", "process", "12", "--dir", t.TempDir(), "-o", "json")
		if b.document(&f); f.Kind != test.kind || f.ExitCode != test.code || f.Error != test.err.Error() {
			t.Errorf("%v as JSON: %+v", test.err, f)
		}
		if test.kind == "damaged" && errors.As(test.err, new(*image.DamageError)) &&
			(len(f.Damage) != 1 || f.Damage[0].Offset != 64 || f.Damage[0].File != "img-0") {
			t.Errorf("damage as JSON: %+v", f.Damage)
		}
	}
}

func TestSentence(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("%w: every: it is a positive time", stasis.ErrInput), "every: it is a positive time"},
		{errors.Join(errors.New("dump: the pipe broke"), errors.New("the pipe broke"), errors.New("close")), "dump: the pipe broke\nclose"},
		{errors.Join(context.Canceled, &interruption{15}, &interruption{15}), "interrupted by SIGTERM"},
		{errors.Join(fmt.Errorf("restore: %w", context.Canceled), &interruption{2}), "restore: interrupted by SIGINT"},
	} {
		if got := sentence(test.err); got != test.want {
			t.Errorf("%q is told as %q, not %q", test.err, got, test.want)
		}
	}
}

func TestInterrupted(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	b.dump = func(ctx context.Context, _ stasis.DumpOptions) (*stasis.DumpResult, error) {
		cancel(&interruption{15})
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if code := b.app.run(ctx, []string{"dump", "process", "12", "--dir", t.TempDir()}); code != 143 {
		t.Errorf("exit code %d", code)
	}
	if got := b.err.String(); got != "stasis: interrupted by SIGTERM\n" {
		t.Errorf("it says %q", got)
	}
}

// Where nobody reads the results any more, there is nobody to tell, and the exit code is that of a program that SIGPIPE has ended.
func TestNobodyReads(t *testing.T) {
	b := newBench(t)
	gone, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	gone.Close()
	out, err := unix.Dup(int(pipe.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(out), os.Stdout.Name())
	defer file.Close()
	b.app.out = file
	for _, args := range [][]string{{"config", "show"}, {"config", "show", "-o", "json"}, {"dump", "process", "12", "--dir", t.TempDir(), "-o", "json"}} {
		if code := b.run(args...); code != exitSignal+13 || b.err.Len() > 0 {
			t.Errorf("%v: exit code %d, %q", args, code, b.err.String())
		}
	}
}

func TestCheckpointsOfJobsByName(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(b.dir, "jobs", "sim-2", "000012")
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	checkpoint(t, dir, nil)
	if code := b.run("restore", "process", "--path", "sim-2-12", "-d"); code != exitOK || b.restored.Dir != dir {
		t.Errorf("exit code %d, %+v: %s", code, b.restored, b.err.String())
	}
	b.says(exitInput, []string{"inspect", "sim-2-13"}, "no checkpoint sim-2-13")
	b.says(exitInput, []string{"rm", "sim-2"}, "sim-2 is a job", "stasis checkpoints --job sim-2")
}
