package integration

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/convert"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/pageserver"
	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/testkit"
)

// TestImportDeduplicated: CRIU's own dedup makes holes in a parent. The child is imported, and the parent refused.
func TestImportDeduplicated(t *testing.T) {
	require.Root(t)
	criu := require.CRIU(t)
	p, root := testkit.StartSubject(t, "mem:mib=32,rate=20"), t.TempDir()
	first, second := filepath.Join(root, "first"), filepath.Join(root, "second")
	lib := library{engine: stasis.EngineAuto}
	if err := lib.DumpOn(t, p.PID(), first, "", testkit.Needs{}, false); err != nil {
		t.Fatal(err)
	}
	p.Work(t)
	tree := testkit.Tree(p.PID())
	if err := lib.DumpOn(t, p.PID(), second, first, testkit.Needs{}, true); err != nil {
		t.Fatal(err)
	}
	testkit.WaitGone(t, tree)
	exported, err := export(t.Context(), second, filepath.Join(root, "criu"), true)
	if err != nil {
		t.Fatal(err)
	}
	parent, child := exported.Folders[0].Dir, exported.Folders[1].Dir
	before := blocksOf(t, parent)
	run(t, criu, "dedup", "-D", child)
	if after := blocksOf(t, parent); after >= before {
		t.Fatalf("CRIU took nothing out of the parent: %d blocks before, %d after", before, after)
	}
	if _, err := importTo(t.Context(), parent, filepath.Join(root, "parent")); !errors.Is(err, convert.ErrImages) {
		t.Errorf("the parent, which has holes: %v", err)
	}
	to := filepath.Join(root, "imported")
	if _, err := importTo(t.Context(), child, to); err != nil {
		t.Fatal(err)
	}
	if err := lib.Restore(t, to, testkit.Needs{}); err != nil {
		t.Fatal(err)
	}
	p.Prove(t)
	p.Work(t)
}

// blocksOf is what the files of a folder take on the disk.
func blocksOf(t *testing.T, dir string) (blocks int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		blocks += st.Blocks
	}
	return blocks
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := os.Create(filepath.Join(t.TempDir(), "output")) // not a pipe, which a daemon would hold open
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(out.Name())
		t.Fatalf("%s %q: %v\n%s", name, args, err, text)
	}
}

// TestImportPageServer: the memory of a dump went to CRIU's own page server, whose images are put with the others.
func TestImportPageServer(t *testing.T) {
	require.Root(t)
	criu := require.CRIU(t)
	p, root := testkit.StartSubject(t, "mem:mib=16,rate=20", "memfd", "anonshared"), t.TempDir()
	pages, images := filepath.Join(root, "pages"), filepath.Join(root, "images")
	for _, dir := range []string{pages, images} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	server := exec.CommandContext(t.Context(), criu, "page-server", "-D", pages, "--address", "127.0.0.1", "--port", port)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	waitListening(t, net.JoinHostPort("127.0.0.1", port))
	tree := testkit.Tree(p.PID())
	run(t, criu, "dump", "-t", fmt.Sprint(p.PID()), "-D", images, "--page-server", "--address", "127.0.0.1", "--port", port)
	if err := server.Wait(); err != nil {
		t.Fatalf("the page server: %v", err)
	}
	testkit.WaitGone(t, tree)
	if _, err := importTo(t.Context(), images, filepath.Join(root, "early")); err == nil || !strings.Contains(err.Error(), "page server") {
		t.Errorf("without the memory: %v", err)
	}
	copyImages(t, images, pages)
	to := filepath.Join(root, "imported")
	if _, err := importTo(t.Context(), pages, to); err != nil {
		t.Fatal(err)
	}
	if err := (library{lazy: true}).Restore(t, to, testkit.Needs{}); err != nil {
		t.Fatal(err)
	}
	p.Prove(t)
	p.Work(t)
}

// TestImportOwnPageServer: the memory of a dump went to a page server of Stasis, on top of that of another dump; CRIU's other images
// are put beside it.
func TestImportOwnPageServer(t *testing.T) {
	require.Root(t)
	criu := require.CRIU(t)
	for name, features := range map[string][]string{
		"shared": {"mem:mib=16,rate=20", "memfd", "anonshared"},
		"sysv":   {"sysvshm"},
		"tree":   {"tree:mib=8,children=2,grandchildren=1"},
	} {
		t.Run(name, func(t *testing.T) {
			p, root := testkit.StartSubject(t, features...), t.TempDir()
			first, second := filepath.Join(root, "first"), filepath.Join(root, "second")
			send(t, criu, p.PID(), first, "", "--leave-running")
			p.Work(t)
			tree := testkit.Tree(p.PID())
			images := send(t, criu, p.PID(), second, first)
			testkit.WaitGone(t, tree)
			if _, err := importTo(t.Context(), second, filepath.Join(root, "early")); !errors.Is(err, convert.ErrImages) {
				t.Errorf("memory alone: %v", err)
			}
			copyImages(t, images, second)
			to := filepath.Join(root, "imported")
			if _, err := importTo(t.Context(), second, to); err != nil {
				t.Fatal(err)
			}
			for _, dir := range []string{first, second} {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			if err := (library{lazy: name == "shared"}).Restore(t, to, testkit.Needs{}); err != nil {
				t.Fatal(err)
			}
			p.Prove(t)
			p.Work(t)
		})
	}
}

// send lets stock CRIU dump a tree with its memory going to a page server that writes a checkpoint into the folder to. The result is
// the folder with the other images.
func send(t *testing.T, criu string, pid int, to, parentDir string, flags ...string) string {
	t.Helper()
	var parent *reader.Checkpoint
	var parentPath string
	if parentDir != "" {
		var err error
		if parent, err = chain.Open(parentDir); err != nil {
			t.Fatal(err)
		}
		defer parent.Close()
		parentPath = filepath.Join("..", filepath.Base(parentDir))
	}
	target, err := store.CreateFolder(to)
	if err != nil {
		t.Fatal(err)
	}
	var id [16]byte
	rand.Read(id[:])
	writer, err := writer.New(target, writer.Options{Shards: 2, ID: id, Parent: parent, ParentPath: parentPath})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := pageserver.Receive(t.Context(), listener, pageserver.ReceiveOptions{
			ServerOptions: pageserver.ServerOptions{Idle: time.Minute}, Writer: writer, Parent: parent,
		})
		done <- err
	}()
	images := t.TempDir()
	run(t, criu, append([]string{"dump", "-t", fmt.Sprint(pid), "-D", images, "--page-server", "--address", "127.0.0.1", "--port", port}, flags...)...)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return images
}

// waitListening waits until somebody listens there, without a connection: a page server takes only one.
func waitListening(t *testing.T, address string) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return
		}
		listener.Close()
		select {
		case <-limit:
			t.Fatalf("nobody listens on %s", address)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// copyImages adds the images of one folder to another.
func copyImages(t *testing.T, from, to string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(from, "*.img"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(name)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImportArchive: an archive as container engines export it, around a real dump.
func TestImportArchive(t *testing.T) {
	require.Root(t)
	p, root := testkit.StartSubject(t, "mem:mib=16,rate=20"), t.TempDir()
	images := filepath.Join(root, "checkpoint")
	if err := os.Mkdir(images, 0o700); err != nil {
		t.Fatal(err)
	}
	tree := testkit.Tree(p.PID())
	if err := testkit.StockCRIU(t).Dump(t, p.PID(), images, testkit.Needs{}, true); err != nil {
		t.Fatal(err)
	}
	testkit.WaitGone(t, tree)
	for _, name := range []string{"config.dump", "spec.dump", "rootfs-diff.tar"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "tar", "-C", root, "-czf", filepath.Join(root, "archive"), "checkpoint", "config.dump", "spec.dump", "rootfs-diff.tar")
	to := filepath.Join(root, "imported")
	imported, err := importTo(t.Context(), filepath.Join(root, "archive"), to)
	if err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(imported.Notes, "\n"); !strings.Contains(notes, "rootfs-diff.tar") {
		t.Errorf("nothing is said of the file system: %q", notes)
	}
	if err := (library{}).Restore(t, to, testkit.Needs{}); err != nil {
		t.Fatal(err)
	}
	p.Prove(t)
	p.Work(t)
}
