package kernels

import (
	"context"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"stasis"
	chains "stasis/internal/chain"
	"stasis/internal/codec"
	"stasis/internal/image/writer"
	"stasis/internal/pageserver"
	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/track"
)

// TestCRIUPreDumpsToThePageServer: stock CRIU tracks a program with soft-dirty
// bits, and sends a pre-dump and then a dump on top of it. Of the dump it sends
// what was written since, and leaves the rest to the parent. Stasis restores it.
func TestCRIUPreDumpsToThePageServer(t *testing.T) {
	require.Root(t)
	criu := require.CRIU(t)
	if err := track.SoftDirtyAvailable(); err != nil {
		require.Missing(t, "soft-dirty", "CRIU has pre-dumps with it alone: %v", err)
	}
	w, folder := startWorker(t), t.TempDir()
	w.do("fill")
	// The first folder's images have to lie where the second's say that they are.
	first, second := filepath.Join(folder, "1"), filepath.Join(folder, "2")
	sent := receive(t, filepath.Join(folder, "memory-1"), "")
	runCRIU(t, criu, "pre-dump", first, w.pid, sent)
	before := sent.wait(t)
	if before.Pages < workerPages || before.Holes != 0 {
		t.Errorf("the pre-dump sent %d pages, and left %d to a parent; the program has %d", before.Pages, before.Holes, workerPages)
	}

	w.do("write 100")
	w.do("drop 20")
	orders := w.orders
	sent = receive(t, filepath.Join(folder, "memory-2"), sent.dir)
	runCRIU(t, criu, "dump", second, w.pid, sent, "--prev-images-dir", "../1")
	after := sent.wait(t)
	w.reap()
	t.Logf("the pre-dump sent %d pages; the dump %d, and left %d to it", before.Pages, after.Pages, after.Holes)
	if after.Holes < workerPages/2 || after.Pages > workerPages/4 {
		t.Errorf("the dump sent %d pages and left %d to its parent: it is not incremental", after.Pages, after.Holes)
	}

	// CRIU's images go to the memory, and both become a checkpoint.
	images, err := filepath.Glob(filepath.Join(second, "*.img"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range images {
		if name := filepath.Base(path); strings.HasPrefix(name, "pages-") {
			t.Errorf("CRIU left %s on its own disk", name)
		}
		if err := os.Rename(path, filepath.Join(sent.dir, filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
	}
	whole := filepath.Join(folder, "whole")
	if _, err := stasis.Import(t.Context(), stasis.ImportOptions{Path: sent.dir, Dir: whole}); err != nil {
		t.Fatal(err)
	}
	w.restore(whole, orders)
	w.do("prove")
	w.do("write 100")
	w.do("prove")
}

// TestCRIUsPreDumpsAreImported: a dump by stock CRIU on top of two of its pre-dumps,
// in folders, is one checkpoint for Stasis.
func TestCRIUsPreDumpsAreImported(t *testing.T) {
	require.Root(t)
	criu := require.CRIU(t)
	if err := track.SoftDirtyAvailable(); err != nil {
		require.Missing(t, "soft-dirty", "CRIU has pre-dumps with it alone: %v", err)
	}
	w, folder := startWorker(t), t.TempDir()
	w.do("fill")
	in := func(name string) string { return filepath.Join(folder, name) }
	runCRIU(t, criu, "pre-dump", in("1"), w.pid, nil)
	w.do("write 100")
	runCRIU(t, criu, "pre-dump", in("2"), w.pid, nil, "--prev-images-dir", "../1")
	w.do("write 50")
	w.do("drop 20")
	orders := w.orders
	runCRIU(t, criu, "dump", in("3"), w.pid, nil, "--prev-images-dir", "../2")
	w.reap()
	imported, err := stasis.Import(t.Context(), stasis.ImportOptions{Path: in("3"), Dir: in("whole")})
	if err != nil {
		t.Fatal(err)
	}
	if imported.Folders != 3 {
		t.Errorf("the memory came from %d folders", imported.Folders)
	}
	w.restore(in("whole"), orders)
	w.do("prove")
	w.do("write 100")
	w.do("prove")

	if _, err := stasis.Import(t.Context(), stasis.ImportOptions{Path: in("2"), Dir: in("none")}); err == nil {
		t.Error("a pre-dump, which has no processes, became a checkpoint")
	} else {
		t.Logf("a pre-dump alone: %v", err)
	}
}

// sender is what a page server hears from CRIU.
type sender struct {
	dir  string
	addr *net.TCPAddr
	done chan struct{}
	got  *pageserver.Received
	err  error
}

// receive starts a page server that writes to a folder, on top of a parent.
func receive(t *testing.T, dir, parentDir string) *sender {
	t.Helper()
	o := writer.Options{Shards: 2, Codec: must(codec.New("lz4", 0))(t), ParentPath: parentDir}
	if _, err := rand.Read(o.ID[:]); err != nil {
		t.Fatal(err)
	}
	if parentDir != "" {
		o.Parent = must(chains.Open(parentDir))(t)
		t.Cleanup(func() { o.Parent.Close() })
	}
	s := &sender{dir: dir, done: make(chan struct{})}
	writer := must(writer.New(must(store.CreateFolder(dir))(t), o))(t)
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	s.addr = listener.Addr().(*net.TCPAddr)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(s.done)
		s.got, s.err = pageserver.Receive(ctx, listener, pageserver.ReceiveOptions{
			ServerOptions: pageserver.ServerOptions{Idle: patience}, Writer: writer, Parent: o.Parent, Announce: o.Parent != nil,
			Stasis: stasis.Version, Name: filepath.Base(dir),
		})
	}()
	t.Cleanup(func() { cancel(); listener.Close(); <-s.done })
	return s
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (s *sender) wait(t *testing.T) *pageserver.Received {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		t.Fatal("the page server does not end")
	}
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.got
}

// runCRIU has stock CRIU dump to a folder, and send the memory to a server, if there is one.
func runCRIU(t *testing.T, criu, verb, dir string, pid int, to *sender, flags ...string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	args := append([]string{verb, "--tree", strconv.Itoa(pid), "--images-dir", dir, "--log-file", "log", "-v2", "--track-mem"}, flags...)
	if to != nil {
		args = append(args, "--page-server", "--address", to.addr.IP.String(), "--port", strconv.Itoa(to.addr.Port))
	}
	if err := exec.CommandContext(t.Context(), criu, args...).Run(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Fatalf("criu %s: %v\n%s", strings.Join(args, " "), err, log)
	}
}
