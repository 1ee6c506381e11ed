package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/chain"
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/require"
	"stasis/internal/store"
)

// putCheckpoint writes a checkpoint of process 70, in blocks but for what is in own, on top of a parent, which may be nil.
func putCheckpoint(tb testing.TB, dir string, parent *reader.Checkpoint, kind string, changed, all, own memory) {
	tb.Helper()
	w := newWriter(tb, dir, writer.Options{Shards: 2, Parent: parent, ParentPath: parentPath(parent)})
	for n, page := range changed {
		if err := w.PutPages(0, image.PageBlock{PID: 70, Extents: []image.Extent{{Addr: at(n), Pages: 1}}, Data: page}); err != nil {
			tb.Fatal(err)
		}
	}
	if kind == image.KindFull {
		images := stateImages(tb, 70)
		var runs []criu.PageRun
		var pages []byte
		for _, n := range slices.Sorted(maps.Keys(own)) {
			runs = append(runs, criu.PageRun{Start: at(n), Pages: 1, Flags: criu.PagePresent})
			pages = append(pages, own[n]...)
		}
		text, err := criu.EncodePagemap(1, runs)
		if err != nil {
			tb.Fatal(err)
		}
		images["pagemap-70.img"], images["pages-1.img"] = text, pages
		for name, text := range images {
			if err := w.PutFile(name, strings.NewReader(string(text))); err != nil {
				tb.Fatal(err)
			}
		}
	}
	var present []image.Range
	for n := range all {
		present = append(present, image.Range{Start: at(n), End: at(n + 1)})
	}
	m := &image.Manifest{Kind: kind, Name: filepath.Base(dir), RootPID: 70, Options: map[string]string{optionsKey: `{"tcp_established":true,"external":["mnt[/a b]:x"]}`}}
	if err := w.Finish(map[int][]image.Range{70: present}, m); err != nil {
		tb.Fatal(err)
	}
}

func parentPath(parent *reader.Checkpoint) string {
	if parent == nil {
		return ""
	}
	return filepath.Join("..", parent.Manifest().Name)
}

func openChain(tb testing.TB, dir string) *reader.Checkpoint {
	tb.Helper()
	c, err := chain.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// TestExportChainAgainstAMap exports random chains, from every point, and compares every page of every folder.
func TestExportChainAgainstAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	for round := range 12 {
		root := t.TempDir()
		var want []memory
		var parent *reader.Checkpoint
		blocks := memory{}
		length := 1 + random.IntN(4)
		for i := range length {
			changed, own, all := memory{}, memory{}, memory{}
			for n := range uint64(oursTo) {
				switch random.IntN(6) {
				case 0: // as the parent has it
				case 1: // not there
					delete(blocks, n)
				case 2: // zero
					changed[n] = make([]byte, pageSize)
				case 3: // almost as before
					if old := blocks[n]; old != nil {
						changed[n] = append([]byte("changed"), old[7:]...)
					}
				default:
					changed[n] = pageOf(i, n, random.IntN(3))
				}
			}
			maps.Copy(blocks, changed)
			for n := range uint64(20) {
				own[stackFrom+n] = pageOf("stack", i, n)
			}
			maps.Copy(all, blocks)
			kind := image.KindFull
			if i == 0 && length > 1 {
				kind, own = image.KindPreDump, nil
			}
			maps.Copy(all, own)
			dir := filepath.Join(root, fmt.Sprint("c", i))
			putCheckpoint(t, dir, parent, kind, changed, blocks, own)
			parent = openChain(t, dir)
			want = append(want, all)
		}
		last := filepath.Join(root, fmt.Sprint("c", length-1))
		exportLine(t, last, filepath.Join(root, "flat"), false)
		compare(t, fmt.Sprintf("round %d flat", round), folderHas(t, filepath.Join(root, "flat"), 70), want[length-1], true)
		result := exportLine(t, last, filepath.Join(root, "line"), true)
		if len(result.Folders) != length {
			t.Fatalf("%d folders for %d checkpoints", len(result.Folders), length)
		}
		inherited := int64(0)
		for i, all := range want {
			compare(t, fmt.Sprintf("round %d folder %d of %d", round, i+1, length), folderHas(t, result.Folders[i].Dir, 70), all, true)
			inherited += result.Folders[i].ParentPages
		}
		if length > 1 && inherited == 0 {
			t.Errorf("round %d: no page is in a parent", round)
		}
		to := filepath.Join(root, "again")
		if _, err := importTo(t, result.Folders[length-1].Dir, to); err != nil {
			t.Fatal(err)
		}
		all, _ := has(t, openFolder(t, to), 70)
		compare(t, fmt.Sprintf("round %d imported again", round), all, want[length-1], true)
	}
}

func exportLine(t *testing.T, dir, out string, chain bool) *Exported {
	t.Helper()
	line, err := OpenLine(t.Context(), dir, chain)
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	if line.Note != "" {
		t.Error(line.Note)
	}
	result, err := Export(t.Context(), line.Checkpoints, out, ExportOptions{Chain: chain, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// one writes a checkpoint and opens it.
func one(t *testing.T, pages int) *reader.Checkpoint {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "one")
	blocks := memory{}
	for n := range uint64(pages) {
		blocks[n] = pageOf(n)
	}
	putCheckpoint(t, dir, nil, image.KindFull, blocks, blocks, memory{stackFrom: pageOf("stack")})
	return openFolder(t, dir)
}

// TestExportSaysHowToRestore, with the options of the dump.
func TestExportSaysHowToRestore(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	result, err := Export(t.Context(), []*reader.Checkpoint{one(t, 3)}, out, ExportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"criu", "restore", "-D", out, "--tcp-established", "--external", "mnt[/a b]:x"}; !slices.Equal(result.Command, want) {
		t.Errorf("%q, should be %q", result.Command, want)
	}
}

// TestExportLeavesOthersAlone: what is in the way stays as it is; an empty folder is taken.
func TestExportLeavesOthersAlone(t *testing.T) {
	c, root := one(t, 3), t.TempDir()
	full, file, empty := filepath.Join(root, "full"), filepath.Join(root, "file"), filepath.Join(root, "empty")
	for _, dir := range []string{full, empty} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	put(t, full, "mine", nil)
	put(t, root, "file", nil)
	for _, out := range []string{full, file} {
		if _, err := Export(t.Context(), []*reader.Checkpoint{c}, out, ExportOptions{}); !errors.Is(err, store.ErrExists) {
			t.Errorf("export to %s: %v", out, err)
		}
	}
	left := filepath.Join(root, ".empty"+partialMark+"1") // of one that was killed
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), []*reader.Checkpoint{c}, empty, ExportOptions{}); err != nil {
		t.Error(err)
	}
	wantNames(t, root, "empty", "file", "full")
	wantNames(t, full, "mine")
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		t.Errorf("in %s are %q, should be %q", dir, names, want)
	}
}

// TestExportToAFullDisk: known early where it is full, found out where it fills meanwhile; nothing is left, and the message says so.
func TestExportToAFullDisk(t *testing.T) {
	require.Root(t)
	c, disk := one(t, 150), t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=512k"); err != nil {
		require.Missing(t, "tmpfs", "%v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	out := filepath.Join(disk, "out")
	if _, err := Export(t.Context(), []*reader.Checkpoint{c}, out, ExportOptions{}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("a full disk: %v", err)
	}
	wantNames(t, disk)

	small := one(t, 100)
	fill := func(int64, int64) { // it fits, until somebody else writes
		_ = os.WriteFile(filepath.Join(disk, "other"), make([]byte, 400<<10), 0o600)
	}
	_, err := Export(t.Context(), []*reader.Checkpoint{small}, out, ExportOptions{Progress: fill})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "nothing was left") {
		t.Errorf("a disk that gets full: %v", err)
	}
	wantNames(t, disk, "other")
}

// TestExportFindsDamage: a page that was changed on the disk gets into no image.
func TestExportFindsDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "one")
	putCheckpoint(t, dir, nil, image.KindFull, memory{1: pageOf(1)}, memory{1: pageOf(1)}, memory{stackFrom: pageOf("stack")})
	for shard := range 2 {
		name := filepath.Join(dir, image.ShardName(shard))
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.Index(string(text), string(pageOf(1))[:100]); i > 0 {
			text[i] ^= 1
		}
		put(t, dir, image.ShardName(shard), text)
	}
	out := filepath.Join(t.TempDir(), "out")
	var damage *image.DamageError
	if _, err := Export(t.Context(), []*reader.Checkpoint{openFolder(t, dir)}, out, ExportOptions{}); !errors.As(err, &damage) {
		t.Errorf("a damaged checkpoint: %v", err)
	}
	wantNames(t, filepath.Dir(out))
}

// TestExportRefusesPreDumps: there is no state in them.
func TestExportRefusesPreDumps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "one")
	putCheckpoint(t, dir, nil, image.KindPreDump, memory{1: pageOf(1)}, memory{1: pageOf(1)}, nil)
	if _, err := Export(t.Context(), []*reader.Checkpoint{openFolder(t, dir)}, filepath.Join(t.TempDir(), "out"), ExportOptions{}); err == nil || !strings.Contains(err.Error(), "pre-dump") {
		t.Errorf("a pre-dump: %v", err)
	}
}

// TestLineEndsWithANote where an ancestor is gone that nothing is needed of.
func TestLineEndsWithANote(t *testing.T) {
	root := t.TempDir()
	first, second := filepath.Join(root, "c0"), filepath.Join(root, "c1")
	putCheckpoint(t, first, nil, image.KindFull, memory{1: pageOf(1)}, memory{1: pageOf(1)}, nil)
	putCheckpoint(t, second, openChain(t, first), image.KindFull, memory{1: pageOf(2)}, memory{1: pageOf(2)}, nil)
	if err := os.RemoveAll(first); err != nil {
		t.Fatal(err)
	}
	line, err := OpenLine(t.Context(), second, true)
	if err != nil {
		t.Fatal(err)
	}
	defer line.Close()
	if len(line.Checkpoints) != 1 || !strings.Contains(line.Note, "c1") {
		t.Errorf("%d checkpoints, note %q", len(line.Checkpoints), line.Note)
	}
}

// TestCancelled: an export and an import that are to end do, and leave nothing.
func TestCancelled(t *testing.T) {
	root := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	stop := func(int64, int64) { cancel() }
	if _, err := Export(ctx, []*reader.Checkpoint{one(t, 150)}, filepath.Join(root, "out"), ExportOptions{Progress: stop}); !errors.Is(err, context.Canceled) {
		t.Errorf("export: %v", err)
	}
	wantNames(t, root)
	dir, _ := putLayers(t, rand.New(rand.NewPCG(1, 2)), t.TempDir(), 1, 70)
	ctx, cancel = context.WithCancel(t.Context())
	_, err := Import(ctx, dir, ImportOptions{
		Target: func(string) (store.Target, error) { return store.CreateFolder(filepath.Join(root, "checkpoint")) }, Shards: 1,
		Progress: func(int64, int64) { cancel() },
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrImages) {
		t.Errorf("import: %v", err)
	}
	wantNames(t, root)
}
