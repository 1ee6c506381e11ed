package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"stasis"
	"stasis/internal/image/reader"
	"stasis/internal/store"
)

func TestDumpOptions(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "one")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		want stasis.DumpOptions
	}{
		{"plain", []string{"dump", "process", "12", "--dir", dir}, stasis.DumpOptions{}},
		{"as CRIU", []string{"dump", "-t", "12", "-D", dir}, stasis.DumpOptions{}},
		{"as CRIU, long", []string{"dump", "--tree", "12", "--images-dir=" + dir}, stasis.DumpOptions{}},
		{"pid", []string{"dump", "--pid", "12", "--dir", dir}, stasis.DumpOptions{}},
		{"mixed", []string{"dump", "process", "12", "--images-dir", dir}, stasis.DumpOptions{}},
		{"all of ours", []string{"dump", "process", "12", "--dir", dir, "--stream", "3", "--compression", "zstd", "--level", "7", "-R", "--engine", "criu",
			"--max-rounds", "2", "--max-pause", "5ms", "--final-buffer", "64M", "--criu", "/opt/criu"},
			stasis.DumpOptions{Streams: 3, Compression: "zstd", Level: 7, After: stasis.AfterRun, Engine: stasis.EngineCRIU,
				MaxRounds: 2, MaxPause: 5 * time.Millisecond, FinalBuffer: 64 << 20, CRIUPath: "/opt/criu"}},
		{"all of CRIU's", []string{"dump", "process", "12", "--dir", dir, "-s", "-j", "--tcp-established", "--skip-in-flight", "-x", "-l", "--link-remap",
			"--ghost-limit", "1M", "--external", "tty[1:2]", "--external", "mnt[/a]:b,c", "-r", "/root", "-J", "net:/run/netns/b", "--manage-cgroups",
			"--action-script", script, "--timeout", "20", "--cpu-cap=cpu,ins", "--file-validation", "buildid", "--network-lock", "skip", "-vvv",
			"--criu-opt", "irmap-scan-path /srv"},
			stasis.DumpOptions{After: stasis.AfterStop, CRIU: stasis.CRIUOptions{
				ShellJob: true, TCPEstablished: true, SkipInFlight: true, ExtUnixSk: true, FileLocks: true, LinkRemap: true, GhostLimit: 1 << 20,
				External: []string{"tty[1:2]", "mnt[/a]:b,c"}, Root: "/root", JoinNS: []string{"net:/run/netns/b"}, ManageCgroups: "soft",
				ActionScript: script, Timeout: 20, CPUCap: "cpu,ins", FileValidation: "buildid", NetworkLock: "skip", LogLevel: 3,
				Raw: []string{"irmap-scan-path /srv"},
			}}},
		{"CRIU's -v4", []string{"dump", "-t", "12", "-D", dir, "-v4", "--tcp-close", "--cpu-cap", "--manage-cgroups=full"},
			stasis.DumpOptions{CRIU: stasis.CRIUOptions{LogLevel: 4, TCPClose: true, CPUCap: "all", ManageCgroups: "full"}}},
	} {
		if code := b.run(test.args...); code != exitOK || b.dumped == nil {
			t.Errorf("%s: exit code %d: %s", test.name, code, b.err.String())
			continue
		}
		got := *b.dumped
		test.want.PID, test.want.Dir = 12, dir
		got.Progress = nil
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", test.name, got, test.want)
		}
	}
}

func TestDumpPlaces(t *testing.T) {
	b := newBench(t)
	if code := b.run("dump", "process", "12", "--name", "one"); code != exitOK {
		t.Fatal(b.err.String())
	}
	if want := filepath.Join(b.dir, "one"); b.dumped.Dir != want || b.dumped.Name != "one" {
		t.Errorf("by name: %s, %s", b.dumped.Dir, b.dumped.Name)
	}
	if st, err := os.Stat(b.dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the default folder: %v, %v", st, err)
	}
	if code := b.run("dump", "process", "4194304"); code != exitOK {
		t.Fatal(b.err.String())
	}
	if name := b.dumped.Name; !strings.HasPrefix(name, "process-2") || b.dumped.Dir != filepath.Join(b.dir, name) {
		t.Errorf("without a name: %s in %s", name, b.dumped.Dir)
	}
	for comm, want := range map[string]string{"redis-server": "redis-server", "nginx: master": "nginx-master", "../..": "process", "(sd-pam)": "sd-pam", "\xff": "process"} {
		if got := tidy(comm); got != want {
			t.Errorf("%q becomes %q, not %q", comm, got, want)
		}
	}
}

func TestDumpConfiguration(t *testing.T) {
	b := newBench(t)
	b.environ = append(b.environ, "STASIS_CHECKPOINT_STREAM=6", "STASIS_CHECKPOINT_COMPRESSION=zstd", "STASIS_CHECKPOINT_LEVEL=9")
	dir := filepath.Join(t.TempDir(), "one")
	for _, test := range []struct {
		args        []string
		streams     int
		compression string
		level       int
	}{
		{nil, 6, "zstd", 9},
		{[]string{"--stream", "2"}, 2, "zstd", 9},
		{[]string{"--compression", "zstd"}, 6, "zstd", 9},
		{[]string{"--level", "1"}, 6, "zstd", 1},
		{[]string{"--compression", "lz4"}, 6, "lz4", 0},
		{[]string{"--compression", "none"}, 6, "none", 0},
		{[]string{"--compression", "gzip", "--level", "3"}, 6, "gzip", 3},
	} {
		if code := b.run(append([]string{"dump", "process", "12", "--dir", dir}, test.args...)...); code != exitOK {
			t.Errorf("%v: %s", test.args, b.err.String())
		} else if d := b.dumped; d.Streams != test.streams || d.Compression != test.compression || d.Level != test.level {
			t.Errorf("%v: %d streams, %s, level %d", test.args, d.Streams, d.Compression, d.Level)
		}
	}
}

func TestDumpTells(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "one")
	b.run("dump", "process", "4711", "--dir", dir)
	text := b.out.String()
	for _, part := range []string{"redis-server (4711)", dir, "8.2 ms", "1.0 MiB of memory and 0 B of state in 256.0 KiB (25 %, lz4)", "4 streams", "2 rounds", "it was killed"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q lacks %q", text, part)
		}
	}
	if strings.Count(text, "\n") != 1 || b.err.Len() > 0 {
		t.Errorf("not one line: %q, %q", text, b.err.String())
	}
	var r dumpReport
	b.run("dump", "process", "4711", "--dir", dir, "-o", "json")
	if b.document(&r); r.Dir != dir || r.PID != 4711 || r.Ratio != 0.25 || r.Streams != 4 || r.Figures.PauseUS != 8200 || r.After != stasis.AfterKill {
		t.Errorf("as JSON: %+v", r)
	}
	if b.run("dump", "process", "4711", "--dir", dir, "-q"); b.out.Len()+b.err.Len() > 0 {
		t.Errorf("quiet: %q, %q", b.out.String(), b.err.String())
	}
}

// dumpInto makes the bench's dump write a real checkpoint into where it goes.
func (b *bench) dumpInto() {
	b.dump = func(_ context.Context, o stasis.DumpOptions) (*stasis.DumpResult, error) {
		b.dumped = &o
		if err := writeCheckpoint(o.Target, nil); err != nil {
			return nil, err
		}
		return &stasis.DumpResult{After: stasis.AfterKill, Manifest: testManifest()}, nil
	}
}

func TestDumpIntoRestore(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	from, to := newBench(t), newBench(t)
	from.dumpInto()
	from.app.out, to.in = w, r

	code := make(chan int, 1)
	go func() {
		defer w.Close()
		code <- from.run("dump", "process", "4711", "--dir", "-", "-o", "json")
	}()
	restored := ""
	to.restore = func(_ context.Context, o stasis.RestoreOptions) (*stasis.RestoreResult, error) {
		restored = o.Dir
		folder, err := store.OpenFolder(o.Dir)
		if err != nil {
			return nil, err
		}
		c, err := reader.Open(folder)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return &stasis.RestoreResult{PID: 4711, PIDs: []int{4711}, Manifest: c.Manifest()}, c.Verify(t.Context(), 1, nil)
	}
	if got := to.run("restore", "process", "--path", "-", "--detach"); got != exitOK || to.out.String() != "4711\n" {
		t.Errorf("restore: exit code %d, %q, %s", got, to.out.String(), to.err.String())
	}
	if got := <-code; got != exitOK {
		t.Errorf("dump: exit code %d: %s", got, from.err.String())
	}
	if !strings.Contains(from.err.String(), `"after": "kill"`) {
		t.Errorf("the document is not on standard error: %q", from.err.String())
	}
	if _, err := os.Stat(restored); restored == "" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the received checkpoint %q is still there: %v", restored, err)
	}
}

func TestDumpToStandardOutputOnly(t *testing.T) {
	b := newBench(t)
	b.says(exitInput, []string{"dump", "process", "x", "--dir", "-", "-o", "json"}, `"kind": "input"`)
	if b.out.Len() > 0 {
		t.Errorf("standard output has %q", b.out.String())
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b.dumpInto()
	b.app.out = file
	b.says(exitOK, []string{"dump", "process", "4711", "--dir", "-"}, "to standard output")
	b.in, b.app.out = file, &b.out
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	b.says(exitOK, []string{"restore", "process", "--path", "-", "--detach"}, "restored redis-server")
}

func TestStreamOfRubbish(t *testing.T) {
	b := newBench(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("ssh: connect to host: no route"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	b.in = r
	if code := b.run("restore", "process", "--path", "-"); code == exitOK || b.restored != nil || !strings.Contains(b.err.String(), "stream") {
		t.Errorf("exit code %d: %s", code, b.err.String())
	}
}

// TestReaderLeaves checks that a dump fails, and so lets the process live, when nobody reads the end of its stream.
func TestReaderLeaves(t *testing.T) {
	b := newBench(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	b.dumpInto()
	b.app.out = w
	go func() {
		_, _ = io.ReadFull(r, make([]byte, 100))
		r.Close()
	}()
	b.says(exitFailure, []string{"dump", "process", "4711", "--dir", "-"}, "ended")
}

func TestTaken(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := taken(t.Context(), w, time.Minute); err != nil {
		t.Errorf("an empty pipe: %v", err)
	}
	if _, err := w.Write(bytes.Repeat([]byte("x"), 5000)); err != nil {
		t.Fatal(err)
	}
	if err := taken(t.Context(), w, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "taken nothing") {
		t.Errorf("a reader that hangs: %v", err)
	}
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(&interruption{2})
	if err := taken(cancelled, w, time.Minute); !errors.As(err, new(*interruption)) {
		t.Errorf("a context that ends: %v", err)
	}
	done := make(chan error)
	go func() { done <- taken(t.Context(), w, time.Minute) }()
	if _, err := io.ReadFull(r, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("a reader that has taken all: %v", err)
	}
	r.Close()
	if err := taken(t.Context(), w, time.Minute); err == nil || !strings.Contains(err.Error(), "too early") {
		t.Errorf("a reader that left: %v", err)
	}
}

// TestStuckReader checks that a dump can be ended while it waits for a reader.
func TestStuckReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	p, err := dumpToPipe(ctx, w)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	shard, err := p.Create("img-0")
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		for {
			if _, err := shard.Write(make([]byte, 1<<20)); err != nil {
				failed <- err
				return
			}
		}
	}()
	cancel()
	if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the write ended by %v", err)
	}
}
