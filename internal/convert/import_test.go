package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// TestImportAgainstAMap imports random folders with random parents, compares every page, exports the checkpoint again, and
// compares every page once more.
func TestImportAgainstAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for round := range 20 {
		root := t.TempDir()
		dir, want := putLayers(t, random, root, 1+random.IntN(4), 70, 71)
		imported, err := importTo(t, dir, filepath.Join(root, "checkpoint"))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		c := openFolder(t, filepath.Join(root, "checkpoint"))
		for pid, memory := range want {
			all, blocks := has(t, c, int(pid))
			compare(t, fmt.Sprintf("round %d, process %d", round, pid), all, memory, false)
			for n := range uint64(stackTo) {
				if inBlock := n < oursTo && memory[n] != nil; blocks[n] != inBlock {
					t.Fatalf("round %d: page %d is in a block: %v, should be: %v", round, n, blocks[n], inBlock)
				}
			}
		}
		if m := imported.Manifest; m.RootPID != 70 || len(m.Processes) != 2 || m.Processes[0].Comm != "worker" || m.Kind != image.KindFull || m.Host.Arch != "x86_64" {
			t.Errorf("manifest: %+v", m)
		}
		out := filepath.Join(root, "out")
		if _, err := Export(t.Context(), []*reader.Checkpoint{c}, out, ExportOptions{Workers: 3}); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for pid, memory := range want {
			compare(t, fmt.Sprintf("round %d, process %d exported", round, pid), folderHas(t, out, int(pid)), memory, true)
		}
		critReads(t, out, 70, want[70])
	}
}

// critReads reads some pages with CRIU's own tool.
func critReads(t *testing.T, dir string, pid uint32, want memory) {
	t.Helper()
	r, err := crit.NewMemoryReader(dir, pid, pageSize)
	if err != nil {
		t.Fatal(err)
	}
	got := memory{}
	for n := uint64(0); n < stackTo; n += 7 {
		page, err := r.GetMemPages(at(n), at(n)+pageSize-1)
		if err != nil {
			t.Fatal(err)
		}
		got[n] = append(page.Bytes(), 0)
		if w := want[n]; w != nil {
			got[n][pageSize-1] = w[pageSize-1]
		}
	}
	for n, page := range got {
		compare(t, "crit", memory{n: page}, memory{n: want[n]}, true)
	}
}

// TestImportReadsArguments: they are in the memory of the process.
func TestImportReadsArguments(t *testing.T) {
	dir := t.TempDir()
	putState(t, dir, 9)
	page := make([]byte, pageSize)
	copy(page[8:], "worker\x00-x\x00")
	putLayer(t, dir, 9, 1, memory{stackFrom: page}, nil)
	imported, err := importTo(t, dir, filepath.Join(t.TempDir(), "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	if got := imported.Manifest.Processes[0].Cmdline; !slices.Equal(got, []string{"worker", "-x"}) {
		t.Errorf("arguments %q", got)
	}
}

// TestImportOfGuards: guard pages are listed behind the mappings, and are no mappings.
func TestImportOfGuards(t *testing.T) {
	dir := t.TempDir()
	putState(t, dir, 9)
	list, err := decodeImage[mm.MmEntry](dir, "mm-9.img", criu.MagicMM)
	if err != nil {
		t.Fatal(err)
	}
	list[0].Vmas = append(list[0].Vmas, area(oursFrom+5, oursFrom+6, 0, criu.AreaGuard), area(oursFrom+5, oursFrom+6, 0, criu.AreaGuard))
	put(t, dir, "mm-9.img", encodeImage(t, criu.MagicMM, list[0]))
	want := memory{4: pageOf(1), 6: pageOf(2)}
	putLayer(t, dir, 9, 1, want, nil)
	imported, err := importTo(t, dir, filepath.Join(t.TempDir(), "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	if got := imported.Manifest.Processes[0].Mappings; got["anonymous"].Count != 2 || len(got) != 3 {
		t.Errorf("its mappings are %v", got)
	}
}

// images is a folder of CRIU that a test damages.
type images struct {
	*testing.T
	dir string
}

// TestImportRefuses: whatever is wrong with the images is said, and there is no checkpoint.
func TestImportRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(in images)
		says   string
	}{
		{"an empty folder", func(in images) { removeAll(in.T, in.dir, "*") }, "no images of CRIU"},
		{"a pre-dump", func(in images) { removeAll(in.T, in.dir, "pstree.img") }, "pre-dump"},
		{"no memory", func(in images) { removeAll(in.T, in.dir, "pagemap-70.img") }, "page server"},
		{"no pages", func(in images) { removeAll(in.T, in.dir, "pages-1.img") }, "pages-1.img"},
		{"pages cut short", func(in images) {
			if err := os.Truncate(filepath.Join(in.dir, "pages-1.img"), pageSize); err != nil {
				in.Fatal(err)
			}
		}, "not whole"},
		{"no core", func(in images) { removeAll(in.T, in.dir, "core-71.img") }, "core-71.img"},
		{"no mappings", func(in images) { removeAll(in.T, in.dir, "mm-71.img") }, "not a whole dump"},
		{"another image's content", func(in images) { copyFile(in.T, in.dir, "core-70.img", "mm-70.img") }, "begins with"},
		{"garbage", func(in images) { put(in.T, in.dir, "pstree.img", []byte("garbage that is long enough")) }, "damaged"},
		{"garbage behind a head", func(in images) {
			put(in.T, in.dir, "mm-70.img", append(encodeImage(in, criu.MagicMM), 255, 255, 255, 127))
		}, "damaged"},
		{"pages of a parent that is not there", func(in images) {
			putLayer(in, in.dir, 70, 1, memory{3: pageOf(1)}, map[uint64]bool{3: true})
		}, "parent"},
		{"a parent that lacks the page", func(in images) {
			putLayer(in, in.dir, 70, 1, memory{3: pageOf(1)}, map[uint64]bool{3: true})
			parent := in.TempDir()
			putLayer(in, parent, 70, 1, memory{4: pageOf(1)}, nil)
			link(in.T, parent, in.dir)
		}, "lacks the page"},
		{"a circle", func(in images) { link(in.T, in.dir, in.dir) }, "circle"},
		{"a dump with lazy pages", func(in images) {
			text, err := criu.EncodePagemap(1, []criu.PageRun{{Start: at(1), Pages: 1, Flags: criu.PageLazy}})
			if err != nil {
				in.Fatal(err)
			}
			put(in.T, in.dir, "pagemap-70.img", text)
		}, "--lazy-pages"},
		{"the same pages twice", func(in images) { copyFile(in.T, in.dir, "pagemap-70.img", "pagemap-71.img") }, "same image of pages"},
		{"a pipe for an image", func(in images) {
			removeAll(in.T, in.dir, "core-70.img")
			if err := unix.Mkfifo(filepath.Join(in.dir, "core-70.img"), 0o600); err != nil {
				in.Fatal(err)
			}
		}, "not a regular file"},
		{"holes", func(in images) {
			f, err := os.OpenFile(filepath.Join(in.dir, "pages-1.img"), os.O_RDWR, 0)
			if err != nil {
				in.Fatal(err)
			}
			defer f.Close()
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, pageSize, pageSize); err != nil {
				in.Skipf("this file system has no holes: %v", err)
			}
		}, "--allow-holes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			dir, _ := putLayers(t, rand.New(rand.NewPCG(1, 2)), root, 1, 70, 71)
			test.change(images{t, dir})
			to := filepath.Join(root, "checkpoint")
			_, err := importTo(t, dir, to)
			if err == nil || !strings.Contains(err.Error(), test.says) || !errors.Is(err, ErrImages) {
				t.Errorf("%v, should speak of %s", err, test.says)
			}
			if _, err := os.Stat(to); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something is left in %s: %v", to, err)
			}
		})
	}
}

func removeAll(t *testing.T, dir, pattern string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

func copyFile(t *testing.T, dir, from, to string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, from))
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, to, text)
}

func link(t *testing.T, to, in string) {
	t.Helper()
	if err := os.Symlink(to, filepath.Join(in, parentLink)); err != nil {
		t.Fatal(err)
	}
}

// TestImportAllowsHoles where it is told so.
func TestImportAllowsHoles(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	putState(t, dir, 70)
	putLayer(t, dir, 70, 1, memory{1: pageOf(1), 2: pageOf(2)}, nil)
	if err := os.WriteFile(filepath.Join(dir, "pages-1.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "pages-1.img"), 2*pageSize); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(root, "checkpoint")
	_, err := Import(t.Context(), dir, ImportOptions{
		Target: func(string) (store.Target, error) { return store.CreateFolder(to) }, Shards: 1, AllowHoles: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := openFolder(t, to).Manifest().Figures.ZeroPages; got != 2 {
		t.Errorf("%d pages of zeros, should be 2", got)
	}
}

// TestImportTakesACheckpointBeside: memory that a page server of Stasis wrote into the same folder.
func TestImportTakesACheckpointBeside(t *testing.T) {
	root := t.TempDir()
	random := rand.New(rand.NewPCG(8, 9))
	from, want := putLayers(t, random, root, 2, 70, 71)
	dir := filepath.Join(root, "d")
	w := newWriter(t, dir, writer.Options{Shards: 1})
	present := map[int][]image.Range{}
	for pid, memory := range want {
		for n, page := range memory {
			if err := w.PutPages(0, image.PageBlock{PID: int(pid), Extents: []image.Extent{{Addr: at(n), Pages: 1}}, Data: page}); err != nil {
				t.Fatal(err)
			}
			present[int(pid)] = append(present[int(pid)], image.Range{Start: at(n), End: at(n + 1)})
		}
	}
	shmem, err := criu.EncodePagemap(5, []criu.PageRun{{Start: 0, Pages: 1, Flags: criu.PagePresent}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"pagemap-shmem-3.img": shmem, "pages-5.img": pageOf("shmem")} {
		if err := w.PutFile(name, strings.NewReader(string(text))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(present, &image.Manifest{Kind: image.KindPreDump}); err != nil {
		t.Fatal(err)
	}
	if _, err := importTo(t, dir, filepath.Join(root, "early")); err == nil {
		t.Error("memory alone was imported")
	}
	putState(t, dir, 70, 71)
	to := filepath.Join(root, "checkpoint")
	if _, err := importTo(t, dir, to); err != nil {
		t.Fatal(err)
	}
	c := openFolder(t, to)
	for pid, memory := range want {
		all, _ := has(t, c, int(pid))
		compare(t, fmt.Sprint("process ", pid), all, memory, false)
	}
	var text strings.Builder
	if err := c.WriteFile("pages-5.img", &text); err != nil || text.String() != string(pageOf("shmem")) {
		t.Errorf("shared memory %.20q, %v", text.String(), err)
	}
	copyInto(t, from, dir, "pagemap-70.img")
	if _, err := importTo(t, dir, filepath.Join(root, "twice")); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("memory that is there twice: %v", err)
	}
}

func copyInto(t *testing.T, from, to, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(from, name))
	if err != nil {
		t.Fatal(err)
	}
	put(t, to, name, text)
}

func newWriter(tb testing.TB, dir string, o writer.Options) *writer.Writer {
	tb.Helper()
	target, err := store.CreateFolder(dir)
	if err != nil {
		tb.Fatal(err)
	}
	o.ID = newID()
	w, err := writer.New(target, o)
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

// FuzzImages: no content of any image makes the import panic, take for ever, or plan for pages that are not there.
func FuzzImages(f *testing.F) {
	state := stateImages(f, 70)
	pagemap, err := criu.EncodePagemap(1, []criu.PageRun{{Start: at(1), Pages: 2, Flags: criu.PagePresent}, {Start: at(9), Pages: 1, Flags: criu.PageInParent}})
	if err != nil {
		f.Fatal(err)
	}
	parent, err := criu.EncodePagemap(1, []criu.PageRun{{Start: at(9), Pages: 3, Flags: criu.PagePresent}})
	if err != nil {
		f.Fatal(err)
	}
	root := f.TempDir()
	dir, below := filepath.Join(root, "d"), filepath.Join(root, "p")
	for _, d := range []string{dir, below} {
		if err := os.Mkdir(d, 0o700); err != nil {
			f.Fatal(err)
		}
		put(f, d, "pages-1.img", make([]byte, 3*pageSize))
	}
	if err := os.Symlink(below, filepath.Join(dir, parentLink)); err != nil {
		f.Fatal(err)
	}
	f.Add(state[inventoryImage], state["pstree.img"], state["core-70.img"], state["mm-70.img"], pagemap, parent)
	f.Fuzz(func(t *testing.T, inventory, pstree, core, mm, pagemap, parent []byte) {
		put(t, dir, inventoryImage, inventory)
		put(t, dir, "pstree.img", pstree)
		put(t, dir, "core-70.img", core)
		put(t, dir, "mm-70.img", mm)
		put(t, dir, "pagemap-70.img", pagemap)
		put(t, below, "pagemap-70.img", parent)
		i := &importing{ctx: t.Context()}
		defer i.close()
		if _, err := i.look(dir); err != nil {
			return
		}
		for _, plan := range i.plans {
			for _, s := range append(plan.ours, plan.theirs...) {
				if s.pages > 3 || s.in.readPages(make([]byte, s.bytes()), s.at) != nil {
					t.Errorf("%d pages at %d of a file of 3", s.pages, s.at/pageSize)
				}
			}
		}
	})
}

// TestImportSharesLittle: where processes share less than 2 % of the memory, Stasis takes it all.
func TestImportSharesLittle(t *testing.T) {
	for shared, inBlock := range map[uint64]bool{2: true, 40: false} {
		dir := t.TempDir()
		putState(t, dir, 70, 71)
		for i, pid := range []int{70, 71} {
			pages := memory{}
			for n := range uint64(oursTo) {
				pages[n] = pageOf(pid, n)
			}
			for n := range shared {
				pages[sharedFrom+n] = pageOf("both", n)
			}
			putLayer(t, dir, pid, uint32(i+1), pages, nil)
		}
		to := filepath.Join(t.TempDir(), "checkpoint")
		if _, err := importTo(t, dir, to); err != nil {
			t.Fatal(err)
		}
		for _, pid := range []int{70, 71} {
			if _, blocks := has(t, openFolder(t, to), pid); blocks[sharedFrom] != inBlock || !blocks[0] {
				t.Errorf("%d pages shared: in a block: %v, should be %v", shared, blocks[sharedFrom], inBlock)
			}
		}
	}
}
