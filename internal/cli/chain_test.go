package cli

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/chain"
	"stasis/internal/image"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// layer writes a checkpoint into the default folder, on top of parent ("": none). Of its 128 pages those of the upper half are as
// in the parent, and the lower half is its own.
func (b *bench) layer(name, parent, kind string, created time.Time) {
	b.t.Helper()
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	dir := filepath.Join(b.dir, name)
	o := writer.Options{Shards: 1, ID: [16]byte{byte(len(name)), name[len(name)-1], 1}, NoDelta: true} // each page has its own bytes
	if parent != "" {
		p, err := chain.Open(filepath.Join(b.dir, parent))
		if err != nil {
			b.t.Fatal(err)
		}
		defer p.Close()
		o.Parent, o.ParentPath = p, filepath.Join("..", parent)
	}
	target, err := store.CreateFolder(dir)
	if err != nil {
		b.t.Fatal(err)
	}
	w, err := writer.New(target, o)
	if err != nil {
		b.t.Fatal(err)
	}
	const half = image.MaxPages
	for part := range uint64(2) {
		data := make([]byte, half*image.PageSize)
		source := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", []string{name, "all"}[part]))))
		if _, err := source.Read(data); err != nil {
			b.t.Fatal(err)
		}
		block := image.PageBlock{PID: 4711, Extents: []image.Extent{{Addr: 0x10000 + part*half*image.PageSize, Pages: half}}, Data: data}
		if err := w.PutPages(0, block); err != nil {
			b.t.Fatal(err)
		}
	}
	m := testManifest()
	m.Name, m.Kind, m.Created = name, kind, created
	if err := w.Finish(map[int][]image.Range{4711: {{Start: 0x10000, End: 0x10000 + 2*half*image.PageSize}}}, m); err != nil {
		b.t.Fatal(err)
	}
}

// three makes a chain of three with a pre-dump, an hour apart.
func (b *bench) three() {
	b.t.Helper()
	at := time.Date(2026, 3, 1, 12, 30, 0, 0, time.Local)
	b.layer("one", "", image.KindFull, at)
	b.layer("pre2", "one", image.KindPreDump, at.Add(time.Hour))
	b.layer("two3", "pre2", image.KindFull, at.Add(2*time.Hour))
	b.layer("three", "two3", image.KindFull, at.Add(3*time.Hour))
}

// shows runs a command that has to succeed, and checks what standard output says.
func (b *bench) shows(args []string, parts ...string) {
	b.t.Helper()
	if code := b.run(args...); code != exitOK {
		b.t.Fatalf("%v: exit code %d: %s", args, code, b.err.String())
	}
	for _, part := range parts {
		if !strings.Contains(b.out.String(), part) {
			b.t.Errorf("%v lacks %q:\n%s", args, part, b.out.String())
		}
	}
}

func TestCheckpoints(t *testing.T) {
	b := newBench(t)
	b.shows([]string{"checkpoints"}, "no checkpoints in "+b.dir)
	b.three()
	b.shows([]string{"checkpoints"}, "one ", "2026-03-01 12:30:00", "redis-server *:6379 (4711)", "512.0 KiB", "two3 (3)", "pre2 (2)", "whole")
	if out := b.out.String(); strings.Contains(out, "pre-dump") || strings.Index(out, "one ") > strings.Index(out, "three ") {
		t.Errorf("it lists a pre-dump, or the wrong order:\n%s", out)
	}
	if !strings.Contains(b.err.String(), "1 more not shown") {
		t.Errorf("it says %q", b.err.String())
	}
	b.shows([]string{"checkpoints", b.dir, "--all"}, "one (1)", "pre-dump")
	var list []chain.Info
	b.run("checkpoints", "-a", "-o", "json")
	if b.document(&list); len(list) != 4 || list[3].Name != "three" || list[3].Depth != 3 || list[3].Parent != list[2].ID || len(list[0].Dependents) != 3 || list[3].BytesReferenced == 0 {
		t.Errorf("as JSON: %+v", list)
	}
	b.says(exitInput, []string{"checkpoints", filepath.Join(b.dir, "one")}, "is a checkpoint itself")
	if b.run("__complete", "rm", "one", ""); !strings.Contains(b.out.String(), "three\n") {
		t.Errorf("completion: %q", b.out.String())
	}
}

// TestCheckpointsThatAreNotWhole: a list reads no memory, but it sees that a file is gone or cut.
func TestCheckpointsThatAreNotWhole(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"cut", "gone"} {
		b.layer(name, "", image.KindFull, time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC))
	}
	if err := os.Truncate(filepath.Join(b.dir, "cut", "img-0"), 1000); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(b.dir, "gone", "img-0")); err != nil {
		t.Fatal(err)
	}
	b.shows([]string{"checkpoints"}, "redis-server", "unreadable: img-0 has 1000 bytes instead of", "unreadable: img-0 is missing")
	b.layer("pre1", "", image.KindPreDump, time.Now())
	b.layer("pre2", "", image.KindPreDump, time.Now())
	b.says(exitOK, []string{"checkpoints"}, "2 more not shown")
}

func TestRm(t *testing.T) {
	b := newBench(t)
	b.three()
	b.shows([]string{"rm", "one", "--dry-run"}, "would be removed", "would be given back")
	b.shows([]string{"verify", "one"}, "one is whole")
	b.shows([]string{"rm", "one"}, filepath.Join(b.dir, "one")+" removed", "kept for", "given back")
	b.says(exitInput, []string{"verify", "one"}, "it was removed")
	b.shows([]string{"verify", "three"}, "three is whole")
	b.shows([]string{"checkpoints", "--all"}, "removed")
	var r chain.Report
	b.run("rm", "three", "two3", "pre2", "-o", "json")
	if b.document(&r); len(r.Removed) != 3 || r.Freed == 0 || r.Later == nil {
		t.Errorf("as JSON: %+v", r)
	}
	if left, err := os.ReadDir(b.dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestVerifyLooksForAncestors(t *testing.T) {
	b := newBench(t)
	b.three()
	away := t.TempDir()
	if err := os.Rename(filepath.Join(b.dir, "one"), filepath.Join(away, "uno")); err != nil {
		t.Fatal(err)
	}
	b.says(exitDamaged, []string{"verify", "three"}, "needs its ancestor", "is missing", filepath.Join(b.dir, "one"), "put its folder back")
	b.shows([]string{"checkpoints"}, "unreadable: 1 ancestor")
	b.shows([]string{"verify", "three", "--also", away}, "three is whole")
	b.shows([]string{"compact", "three", "--also", filepath.Join(away, "uno")}, "needs no others now")
	b.shows([]string{"verify", "three"}, "three is whole")
}

func TestRmOfWhatIsInUse(t *testing.T) {
	b := newBench(t)
	b.three()
	l, err := chain.LockShared(t.Context(), filepath.Join(b.dir, "three"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	b.says(exitConflict, []string{"rm", "one"}, "in use", "wait")
	b.says(exitConflict, []string{"dedup", "three", "--yes"}, "in use")
	b.says(exitConflict, []string{"compact", "three"}, "in use")
	b.shows([]string{"prune", "--keep-last", "1"}, "in use")
	b.shows([]string{"verify", "one"}, "one is whole")
}

func TestPrune(t *testing.T) {
	b := newBench(t)
	b.three()
	b.says(exitInput, []string{"prune"}, "what to keep", "--keep-daily")
	b.shows([]string{"prune", "--keep-last", "1", "--keep-within", "1h30min", "-n"}, "keep", "remove", "within 1h30min", "redis-server", "pre-dump of an older dump")
	var r pruneReport
	b.run("prune", "--keep-last", "2", "-o", "json")
	if b.document(&r); len(r.Decisions) != 4 || len(r.Removed) != 2 || r.Decisions[0].Name != "three" || !r.Decisions[0].Keep {
		t.Errorf("as JSON: %+v", r)
	}
	b.shows([]string{"verify", "three"}, "whole")
	b.shows([]string{"verify", "two3"}, "whole")
	b.shows([]string{"prune", "--max-size", "1", "--group-by", "none"}, "size")
	b.shows([]string{"verify", "three"}, "whole")
	b.says(exitInput, []string{"verify", "two3"}, "no checkpoint two3")
}

func TestDedup(t *testing.T) {
	b := newBench(t)
	b.three()
	b.says(exitInput, []string{"dedup", "three"}, "one, two3", "can't be restored any more", "--yes")
	b.says(exitInput, []string{"dedup", "three", "-q"}, "--yes")
	b.shows([]string{"verify", "one"}, "whole")
	b.shows([]string{"dedup", "three", "--dry-run"}, "would be deduplicated", "about ")
	b.shows([]string{"verify", "one"}, "whole")
	b.shows([]string{"dedup", "three", "--yes"}, "it can't be restored any more", "given back")
	b.says(exitDamaged, []string{"verify", "one"}, "was deduplicated", filepath.Join(b.dir, "three"))
	b.shows([]string{"verify", "three"}, "whole")
	b.shows([]string{"inspect", "one"}, "redis-server")
	b.shows([]string{"checkpoints"}, "deduplicated")
	b.shows([]string{"dedup", "three"}, "0 B given back") // nothing is lost any more, so nobody is asked
}

func TestThoroughDedup(t *testing.T) {
	b := newBench(t)
	b.three()
	b.shows([]string{"dedup", "three", "--thorough", "-y"}, "one deduplicated", "given back")
	b.shows([]string{"verify", "three"}, "whole")
	b.shows([]string{"compact", "three"}, "needs no others")
	b.shows([]string{"rm", "one", "pre2", "two3"})
	b.shows([]string{"verify", "three"}, "whole")
}

func TestDedupAsks(t *testing.T) {
	for answer, code := range map[string]int{"y\n": exitOK, "no\n": exitInput, "\n": exitInput} {
		b := newBench(t)
		b.three()
		master, slave := openTerminal(t)
		b.in = slave
		if _, err := master.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		if got := b.run("dedup", "three"); got != code || !strings.Contains(b.err.String(), "Go on? [y/N]") {
			t.Errorf("answer %q: exit code %d: %s", answer, got, b.err.String())
		}
		want := exitOK
		if code == exitOK {
			want = exitDamaged
		}
		if got := b.run("verify", "one"); got != want {
			t.Errorf("answer %q: verify then exits with %d", answer, got)
		}
	}
}

// openTerminal makes a pseudo terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestCompact(t *testing.T) {
	b := newBench(t)
	b.three()
	b.shows([]string{"compact", "three", "--name", "alone", "--compression", "zstd", "--stream", "2"}, "needs no others now", "512.0 KiB of memory")
	var r compactReport
	b.run("compact", "two3", "-o", "json")
	if b.document(&r); r.Dir != filepath.Join(b.dir, "two3") || r.Memory != 512<<10 || r.Old == nil || len(r.Old.Removed) != 1 {
		t.Errorf("as JSON: %+v", r)
	}
	b.shows([]string{"rm", "one", "pre2"})
	for _, name := range []string{"alone", "two3", "three"} {
		b.shows([]string{"verify", name}, "whole")
	}
	b.shows([]string{"compact", "three"}, "needs no others now")
	b.shows([]string{"checkpoints", "--all"}, "alone", "two3", "three")
	if left, err := os.ReadDir(b.dir); err != nil || len(left) != 3 {
		t.Errorf("left: %v, %v", left, err)
	}
	b.says(exitConflict, []string{"compact", "three", "--name", "alone"}, "exists")
}
