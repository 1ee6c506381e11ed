package cli

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/proto"

	"stasis/internal/criu"
	"stasis/internal/image"
)

// criuFolder writes the least that is a dump of CRIU: one process with two pages of private anonymous memory.
func criuFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	encode := func(name string, magic uint32, m proto.Message) {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var text []byte
		for _, word := range []uint32{0x54564319, magic, uint32(len(raw))} {
			text = binary.LittleEndian.AppendUint32(text, word)
		}
		put(name, append(text, raw...))
	}
	u, u32 := proto.Uint64, proto.Uint32
	march := criu_core.CoreEntry_X86_64
	encode("inventory.img", criu.MagicInventory, &inventory.InventoryEntry{ImgVersion: u32(2)})
	encode("pstree.img", criu.MagicPstree, &pstree.PstreeEntry{Pid: u32(812), Ppid: u32(0), Pgid: u32(800), Sid: u32(800), Threads: []uint32{812}})
	encode("core-812.img", criu.MagicCore, &criu_core.CoreEntry{Mtype: &march, Tc: &criu_core.TaskCoreEntry{
		TaskState: u32(1), ExitCode: u32(0), Personality: u32(0), Flags: u32(0), BlkSigset: u(0), Comm: proto.String("wo rker"),
	}})
	encode("mm-812.img", criu.MagicMM, &mm.MmEntry{
		MmStartCode: u(0), MmEndCode: u(0), MmStartData: u(0), MmEndData: u(0), MmStartStack: u(0), MmStartBrk: u(0), MmBrk: u(0),
		MmArgStart: u(0), MmArgEnd: u(0), MmEnvStart: u(0), MmEnvEnd: u(0), ExeFileId: u32(0),
		Vmas: []*vma.VmaEntry{{
			Start: u(0x10000), End: u(0x20000), Pgoff: u(0), Shmid: u(0), Prot: u32(3), Flags: u32(0x22), Status: u32(1 | 1<<9), Fd: proto.Int64(-1),
		}},
	})
	pagemap, err := criu.EncodePagemap(1, []criu.PageRun{{Start: 0x10000, Pages: 2, Flags: criu.PagePresent | criu.PageLazy}})
	if err != nil {
		t.Fatal(err)
	}
	put("pagemap-812.img", pagemap)
	put("pages-1.img", []byte(strings.Repeat("memory! ", 2*image.PageSize/8)))
	return dir
}

// TestImportAndExport: there and back by the command line, for people and for programs.
func TestImportAndExport(t *testing.T) {
	b, images, root := newBench(t), criuFolder(t), t.TempDir()
	if code := b.run("import", images, "--name", "web", "--stream", "3", "--compression", "zstd", "-o", "json"); code != exitOK {
		t.Fatalf("exit code %d: %s%s", code, b.out.String(), b.err.String())
	}
	var imported importReport
	b.document(&imported)
	if imported.Name != "web" || imported.Dir != filepath.Join(b.dir, "web") || imported.PID != 812 || imported.Command != "wo rker" || imported.Streams != 3 ||
		imported.Compression != "zstd" || imported.Figures.BytesMemory != 2*image.PageSize || len(imported.Notes) == 0 {
		t.Errorf("import as JSON: %+v", imported)
	}
	if code := b.run("inspect", "web"); code != exitOK || !strings.Contains(b.out.String(), "Linux (unknown), x86_64, CRIU (unknown)") {
		t.Errorf("inspect: exit code %d: %s%s", code, b.out.String(), b.err.String())
	}
	if code := b.run("import", images, "--dir", filepath.Join(root, "two")); code != exitOK ||
		!strings.Contains(b.out.String(), "imported wo rker (812, 1 process)") || !strings.Contains(b.err.String(), "note: ") {
		t.Errorf("import for people: exit code %d: %s%s", code, b.out.String(), b.err.String())
	}
	if code := b.run("import", images); code != exitOK || !strings.Contains(b.out.String(), filepath.Join(b.dir, "wo-rker-")) {
		t.Errorf("import without a name: exit code %d: %s%s", code, b.out.String(), b.err.String())
	}
	b.says(exitConflict, []string{"import", images, "--name", "web"}, "already exists")

	out := filepath.Join(root, "it's out")
	if code := b.run("export", "web", "--criu", out); code != exitOK || !strings.Contains(b.out.String(), `criu restore -D '`+root+`/it'\''s out' --shell-job`) {
		t.Errorf("export for people: exit code %d: %s%s", code, b.out.String(), b.err.String())
	}
	want, err := os.ReadFile(filepath.Join(images, "pages-1.img"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(out, "pages-1.img")); err != nil || string(got) != string(want) {
		t.Errorf("%d bytes of pages instead of %d, %v", len(got), len(want), err)
	}
	b.says(exitConflict, []string{"export", "web", "--criu", out}, "not empty")
	var exported exportReport
	b.run("export", "web", "--criu", filepath.Join(root, "line"), "--chain", "-o", "json")
	if b.document(&exported); len(exported.Folders) != 1 || exported.Folders[0].Dir != filepath.Join(root, "line", "1") || exported.Folders[0].Pages != 2 {
		t.Errorf("export as JSON: %+v", exported)
	}
}

// TestImportAndExportRefuse what makes no sense, and leave nothing behind.
func TestImportAndExportRefuse(t *testing.T) {
	b, root := newBench(t), t.TempDir()
	checkpoint(t, filepath.Join(root, "one"), nil)
	missing := filepath.Join(root, "no", "where")
	b.says(exitInput, []string{"export", filepath.Join(root, "one")}, "--criu is missing")
	b.says(exitInput, []string{"export", "--criu", missing, filepath.Join(root, "one")}, "make it first")
	b.says(exitInput, []string{"export", "--criu", filepath.Join(root, "out"), "nobody"}, "no checkpoint nobody")
	b.says(exitFailure, []string{"export", "--criu", filepath.Join(root, "out"), filepath.Join(root, "one")}, "no pagemap-4711.img")
	b.says(exitInput, []string{"import", missing}, "give the folder")
	b.says(exitInput, []string{"import", root}, "no images of CRIU")
	b.says(exitInput, []string{"import", criuFolder(t), "--dir", missing}, "make it first")
	b.says(exitInput, []string{"import", criuFolder(t), "--dir", root, "--name", "x"}, "choose one")
	b.says(exitInput, []string{"import", criuFolder(t), "--name", "../x"}, "--name")
	b.says(exitInput, []string{"import", criuFolder(t), "--stream", "0"}, "--stream")
	b.says(exitInput, []string{"import", criuFolder(t), "--compression", "lz4", "--level", "99"}, "level")
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d things in the folder, should be the checkpoint alone: %v", len(entries), err)
	}
}

// TestImportOfACheckpoint has nothing to import, and says what can be done with it.
func TestImportOfACheckpoint(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "one")
	checkpoint(t, dir, nil)
	b.says(exitInput, []string{"import", dir}, "is a checkpoint of Stasis already", "restore process --path "+dir)
	b.says(exitInput, []string{"import", dir + "-none"}, "there is no "+dir+"-none: give")
}
