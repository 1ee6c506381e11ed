package cli

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"stasis"
	"stasis/internal/health"
	"stasis/internal/image"
)

var update = flag.Bool("update", false, "write docs/commands.md anew")

func itoa(n int) string { return strconv.Itoa(n) }

func TestCommandsAreDocumented(t *testing.T) {
	b := newBench(t)
	root := b.root()
	root.InitDefaultHelpCmd()
	want := commandsMarkdown(root)
	path := filepath.Join("..", "..", "docs", "commands.md")
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the commands say: go test ./internal/cli -update", path)
	}
}

func TestVerify(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "one")
	checkpoint(t, dir, nil)
	if code := b.run("verify", dir); code != exitOK || !strings.Contains(b.out.String(), dir+" is whole") {
		t.Errorf("exit code %d: %s%s", code, b.out.String(), b.err.String())
	}
	var r verifyReport
	b.run("verify", dir, "-o", "json")
	if b.document(&r); !r.OK || r.Bytes == 0 || r.Blocks == 0 {
		t.Errorf("as JSON: %+v", r)
	}

	shard := shardWithMemory(t, dir)
	content, err := os.ReadFile(shard)
	if err != nil {
		t.Fatal(err)
	}
	content[64+80] ^= 1 // in the first block
	if err := os.WriteFile(shard, content, 0o600); err != nil {
		t.Fatal(err)
	}
	b.says(exitDamaged, []string{"verify", dir}, "damaged", filepath.Base(shard))
	var f failure
	b.run("verify", dir, "-o", "json")
	if b.document(&f); f.Kind != "damaged" || len(f.Damage) == 0 || f.Damage[0].File != filepath.Base(shard) {
		t.Errorf("damage as JSON: %+v", f)
	}
}

// shardWithMemory is a shard of a checkpoint that has a block of memory.
func shardWithMemory(t *testing.T, dir string) string {
	t.Helper()
	b := newBench(t)
	var r stasis.Inspection
	if b.run("inspect", dir, "-o", "json") != exitOK {
		t.Fatal(b.err.String())
	}
	b.document(&r)
	for _, s := range r.Shards {
		if s.Blocks > 0 {
			return filepath.Join(dir, s.Name)
		}
	}
	t.Fatal("no shard has memory")
	return ""
}

func TestInspect(t *testing.T) {
	b := newBench(t)
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	checkpoint(t, filepath.Join(b.dir, "one"), nil)
	if code := b.run("inspect", "one"); code != exitOK {
		t.Fatal(b.err.String())
	}
	text := b.out.String()
	for _, part := range []string{"redis-one", filepath.Join(b.dir, "one"), "redis-server *:6379", "  [child]", "heap", "5.0 MiB", "0.0.0.0:6379", "img-0", "img-1",
		"lz4", "frozen", "8.2 ms", "4.0 KiB of it zeros", "1 image"} {
		if !strings.Contains(text, part) {
			t.Errorf("lacks %q:\n%s", part, text)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("the name of a file reached the terminal as it is")
	}
	var r stasis.Inspection
	b.run("inspect", "one", "-o", "json")
	if b.document(&r); r.Manifest.Name != "redis-one" || len(r.Shards) != 2 || len(r.Files) != 1 || len(r.Codecs) != 1 || r.Codecs[0].Raw == 0 {
		t.Errorf("as JSON: %+v", r)
	}
	b.says(exitInput, []string{"inspect", "onne"}, "did you mean one?")
	if b.run("__complete", "inspect", ""); !strings.HasPrefix(b.out.String(), "one\n") {
		t.Errorf("completion: %q", b.out.String())
	}
}

// TestInspectAnything shows manifests that make little sense.
func TestInspectAnything(t *testing.T) {
	circle := &image.Manifest{RootPID: 1, Processes: []image.Process{{PID: 2, PPID: 3}, {PID: 3, PPID: 2}, {PID: 5, PPID: 5}, {PID: 5, PPID: 5}}}
	if rows := treeRows(circle); len(rows) > 100 {
		t.Errorf("a circle has %d rows", len(rows))
	}
	var out strings.Builder
	if err := (inspectReport{&stasis.Inspection{Manifest: circle}}).show(&out); err != nil || out.Len() == 0 {
		t.Errorf("%v, %q", err, out.String())
	}
}

func TestCheck(t *testing.T) {
	b := newBench(t)
	results := []health.Result{
		{Name: "CRIU", Status: health.OK, Detail: "4.2.1"},
		{Name: "capabilities", Status: health.Warn, Detail: "no CAP_SYS_RESOURCE", Remedy: "run as full root"},
	}
	b.machine = func(context.Context, string) []health.Result { return results }
	b.process = func(_ context.Context, pid int) []health.Result {
		return []health.Result{{Name: "io_uring", Status: health.Fail, Detail: "descriptor 5 of " + itoa(pid)}}
	}
	if code := b.run("check"); code != exitOK || !strings.Contains(b.out.String(), "→ run as full root") || !strings.Contains(b.out.String(), "can dump and restore: 1 warning") {
		t.Errorf("exit code %d: %s", code, b.out.String())
	}
	if code := b.run("check", "4711"); code != exitFailure || !strings.Contains(b.out.String(), "process 4711 cannot be dumped: 1 failure") {
		t.Errorf("exit code %d: %s", code, b.out.String())
	}
	if code := b.run("check", "4711", "-o", "json"); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
	var r checkReport
	if b.document(&r); r.OK || r.PID != 4711 || len(r.Results) != 1 || r.Results[0].Status != health.Fail {
		t.Errorf("as JSON: %+v", r)
	}
}

func TestVersion(t *testing.T) {
	b := newBench(t)
	if code := b.run("version", "--criu", "/nonexistent"); code != exitOK || !strings.Contains(b.out.String(), "stasis "+stasis.Version) || !strings.Contains(b.out.String(), "/nonexistent") {
		t.Errorf("exit code %d: %s", code, b.out.String())
	}
	var r versionReport
	b.run("version", "--criu", "/nonexistent", "-o", "json")
	if b.document(&r); r.Stasis != stasis.Version || r.Format != image.FormatVersion || r.CRIU != "" {
		t.Errorf("as JSON: %+v", r)
	}
}

func TestManAndCompletion(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "man1")
	if code := b.run("man", dir); code != exitOK {
		t.Fatal(b.err.String())
	}
	page, err := os.ReadFile(filepath.Join(dir, "stasis-dump-process.1"))
	if err != nil || !strings.Contains(string(page), "--leave-running") {
		t.Errorf("%v: %.200s", err, page)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code := b.run("completion", shell); code != exitOK || b.out.Len() < 1000 {
			t.Errorf("%s: exit code %d, %d bytes", shell, code, b.out.Len())
		}
	}
}

// TestHelp checks that every command and flag explains itself.
func TestHelp(t *testing.T) {
	b := newBench(t)
	for cmd := range documented(b.root()) {
		if code := b.run(append(strings.Fields(cmd.CommandPath())[1:], "--help")...); code != exitOK || b.out.Len() == 0 {
			t.Errorf("%s --help: exit code %d", cmd.CommandPath(), code)
		}
		if cmd.Short == "" {
			t.Errorf("%s has no text", cmd.CommandPath())
		}
	}
	b.run("--help")
	for _, part := range []string{"Exit codes:", "3     the checkpoint is damaged", "128+N", "stasis config show", "STASIS_CONFIG"} {
		if !strings.Contains(b.out.String(), part) {
			t.Errorf("the help lacks %q", part)
		}
	}
}

func TestProgress(t *testing.T) {
	v := &progressView{end: make(chan struct{})}
	v.update(stasis.Progress{Step: stasis.StepCopy, Done: 1 << 20, Total: 4 << 20})
	if v.left() != "copying memory " || !strings.HasPrefix(v.right(), " 1.0 MiB of 4.0 MiB, ") {
		t.Errorf("it shows %q … %q", v.left(), v.right())
	}
	v.update(stasis.Progress{Step: stasis.StepCopy, Round: 1, Done: 5 << 20})
	if v.left() != "copying changes, round 2 " || !strings.HasPrefix(v.right(), " 5.0 MiB, ") {
		t.Errorf("it shows %q … %q", v.left(), v.right())
	}
	for _, step := range []stasis.Step{stasis.StepPrepare, stasis.StepArm, stasis.StepCopy, stasis.StepFreeze, stasis.StepState, stasis.StepWrite, stasis.StepPublish,
		stasis.StepEnd, stasis.StepOpen, stasis.StepCheck, stasis.StepUnpack, stasis.StepRestore, stasis.StepFill, stasis.StepResume} {
		if labels[step] == "" {
			t.Errorf("step %s has no label", step)
		}
	}
	v.Close()
	v.Close()
}

func TestFiguresForPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 µs", 82 * time.Microsecond: "82 µs", 8200 * time.Microsecond: "8.2 ms", 520 * time.Millisecond: "520 ms",
		1240 * time.Millisecond: "1.24 s", 123 * time.Second: "2 min 3 s",
	} {
		if got := span(d); got != want {
			t.Errorf("%d ns is %q, not %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 30: "5.0 GiB", 1 << 60: "1.0 EiB"} {
		if got := inBytes(n); got != want {
			t.Errorf("%d is %q, not %q", n, got, want)
		}
	}
	if got := percent(1, 0); got != "–" {
		t.Errorf("a part of nothing is %q", got)
	}
}
