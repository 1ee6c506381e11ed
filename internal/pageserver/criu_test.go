package pageserver

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/chain"
	"stasis/internal/criu"
	"stasis/internal/image/reader"
	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/testkit"
)

// server is a page server for the real CRIU.
type server struct {
	dir  string
	addr *net.TCPAddr
	got  *Received
	err  error
	done chan struct{}
}

// serveCRIU starts one that writes to a folder. target, where it is set, wraps the folder's target.
func serveCRIU(t *testing.T, codecName, parentDir string, o ServerOptions, target func(store.Target) store.Target) *server {
	t.Helper()
	s := &server{dir: filepath.Join(t.TempDir(), "checkpoint"), done: make(chan struct{})}
	var parent *reader.Checkpoint
	if parentDir != "" {
		var err error
		if parent, err = chain.Open(parentDir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { parent.Close() })
	}
	folder, err := store.CreateFolder(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	to := store.Target(folder)
	if target != nil {
		to = target(to)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().(*net.TCPAddr)
	w := newWriterAt(t, to, codecName, parent, parentDir)
	if o.Idle == 0 {
		o.Idle = time.Minute
	}
	o.Note = func(peer string, why error) { t.Logf("turned away %s: %v", peer, why) }
	go func() {
		defer close(s.done)
		s.got, s.err = Receive(t.Context(), l, ReceiveOptions{ServerOptions: o, Writer: w, Parent: parent})
	}()
	t.Cleanup(func() { l.Close(); <-s.done })
	return s
}

func (s *server) wait(t *testing.T) error {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		t.Fatal("the server does not end")
	}
	return s.err
}

// criuDump runs a dump that sends to the server, or one that does not where that is nil.
func criuDump(t *testing.T, pid int, to *server, flags ...string) (dir string, err error) {
	t.Helper()
	dir = t.TempDir()
	args := append([]string{"dump", "--tree", fmt.Sprint(pid), "--images-dir", dir, "--log-file", "log", "-v3"}, flags...)
	if to != nil {
		args = append(args, "--page-server", "--address", to.addr.IP.String(), "--port", fmt.Sprint(to.addr.Port))
	}
	if err = exec.CommandContext(t.Context(), require.CRIU(t), args...).Run(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		err = fmt.Errorf("criu %s: %w\n%s", strings.Join(args, " "), err, log[max(0, len(log)-3000):])
	}
	return dir, err
}

// What CRIU sends is what the processes have in memory, and what CRIU's own images of them have.
func TestCRIUSends(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for name, features := range map[string][]string{
		"shared": {"mem:mib=24,rate=20", "anonshared", "memfd", "sysvshm", "threads:count=3", "locked"},
		"tree":   {"tree:mib=8,children=2,grandchildren=1"},
	} {
		t.Run(name, func(t *testing.T) { criuSends(t, testkit.StartSubject(t, features...), name == "shared") })
	}
}

// criuSends receives a program three times, each checkpoint on top of the one before.
func criuSends(t *testing.T, program *testkit.Subject, segments bool) {
	t.Helper()
	parent := ""
	for _, codecName := range []string{"none", "lz4", "zstd"} {
		program.Work(t)
		s := serveCRIU(t, codecName, parent, ServerOptions{}, nil)
		if _, err := criuDump(t, program.PID(), s, "--leave-stopped"); err != nil {
			t.Fatal(err)
		}
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
		c, err := chain.Open(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Verify(t.Context(), 2, nil); err != nil {
			t.Error(err)
		}
		plain, err := criuDump(t, program.PID(), nil, "--leave-stopped")
		if err != nil {
			t.Fatal(err)
		}
		compareWithProcesses(t, c)
		compareWithImages(t, c, plain)
		if segments != (s.got.Segments >= 3) {
			t.Errorf("%d segments of shared memory; there are an anonymous one, one of memfd and one of System V, or none", s.got.Segments)
		}
		g := c.Manifest().Figures
		t.Logf("%s: %d processes, %d segments, %d pages, %d KiB of memory, %d KiB of files, stored in %d KiB, %d KiB by reference",
			codecName, len(c.PIDs()), s.got.Segments, s.got.Pages, g.BytesMemory>>10, g.BytesFiles>>10, g.BytesStored>>10, g.BytesReferenced>>10)
		if c.Manifest().RootPID != program.PID() {
			t.Errorf("the root is process %d, should be %d", c.Manifest().RootPID, program.PID())
		}
		c.Close()
		for _, pid := range c.PIDs() {
			if err := unix.Kill(pid, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
		program.Prove(t)
		if parent != "" && g.BytesStored*3 > g.BytesMemory {
			t.Errorf("%d of %d bytes are stored although most is as in the parent", g.BytesStored, g.BytesMemory)
		}
		parent = s.dir
	}
}

// compareWithProcesses compares all private memory with that of the stopped processes.
func compareWithProcesses(t *testing.T, c *reader.Checkpoint) {
	t.Helper()
	for _, pid := range c.PIDs() {
		compareWithProcess(t, pid, memoryOf(t, c, pid))
	}
}

func compareWithProcess(t *testing.T, pid int, all map[uint64][]byte) {
	t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if len(all) == 0 {
		t.Errorf("process %d has no memory", pid)
	}
	own := make([]byte, page)
	for _, addr := range slices.Sorted(maps.Keys(all)) {
		if _, err := mem.ReadAt(own, int64(addr)); err != nil {
			t.Fatalf("process %d at %#x: %v", pid, addr, err)
		}
		if !sameButRseq(own, all[addr]) {
			t.Fatalf("process %d: the page at %#x is not what the process has", pid, addr)
		}
	}
}

// sameButRseq compares two pages. The kernel writes to the area that each thread has for restartable sequences (rseq(2), 32 bytes:
// cpu_id_start, cpu_id, …, mm_cid) whenever it wakes the thread up on another processor, even to be stopped again.
func sameButRseq(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	areas := 0
	for i := 0; i < len(a); i += 32 {
		x, y := a[i:i+32], b[i:i+32]
		if bytes.Equal(x, y) {
			continue
		}
		areas++
		rseq := func(p []byte) bool {
			return bytes.Equal(p[:4], p[4:8]) && le.Uint32(p) < 1<<12 && le.Uint32(p[24:]) < 1<<12
		}
		if !rseq(x) || !rseq(y) || !bytes.Equal(x[8:24], y[8:24]) || !bytes.Equal(x[28:], y[28:]) {
			return false
		}
	}
	return areas <= 1
}

// compareWithImages compares all memory with the images of a plain dump.
func compareWithImages(t *testing.T, c *reader.Checkpoint, dir string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "pagemap-*.img"))
	if err != nil || len(found) == 0 {
		t.Fatalf("CRIU's images are %v, %v", found, err)
	}
	segments := 0
	for _, path := range found {
		want := imagesOf(t, path)
		var number uint64
		name := filepath.Base(path)
		if n, _ := fmt.Sscanf(name, "pagemap-shmem-%d.img", &number); n == 1 {
			segments++
			sameMemory(t, name, segment(t, c, number), want)
		} else if n, _ := fmt.Sscanf(name, "pagemap-%d.img", &number); n == 1 {
			got := memoryOf(t, c, int(number))
			for addr := range want {
				if sameButRseq(got[addr], want[addr]) {
					want[addr] = got[addr]
				}
			}
			sameMemory(t, name, got, want)
		}
	}
	if len(found) != segments+len(c.PIDs()) || len(c.Files()) != 2*segments {
		t.Errorf("the images are %v; the checkpoint has processes %v and files %v", found, c.PIDs(), c.Files())
	}
}

// imagesOf reads a page map of CRIU and its pages.
func imagesOf(t *testing.T, path string) map[uint64][]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pages, runs, err := criu.DecodePagemap(text)
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(filepath.Dir(path), criu.PagesImage(pages)))
	if err != nil {
		t.Fatal(err)
	}
	return contentOf(t, runs, content)
}

// fails is a target that can't be committed.
type fails struct{ store.Target }

var errFull = errors.New("no space left on the device")

func (f fails) Commit([]byte) error { return errFull }

// As long as the checkpoint is not safe here, CRIU does not end the processes there.
func TestCRIUKeepsProcessesWhenTheServerFails(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	program := testkit.StartSubject(t, "mem:mib=16,rate=5")
	s := serveCRIU(t, "lz4", "", ServerOptions{}, func(to store.Target) store.Target { return fails{to} })
	if _, err := criuDump(t, program.PID(), s); err == nil {
		t.Error("CRIU's dump succeeded")
	}
	if err := s.wait(t); !errors.Is(err, errFull) {
		t.Errorf("the server says: %v", err)
	}
	if left, err := os.ReadDir(s.dir); err == nil {
		t.Errorf("it left %v", left)
	}
	program.Work(t)
	program.Prove(t)
}

// CRIU speaks TLS by GnuTLS.
func TestCRIUSendsOverTLS(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	a := newAuthority(t)
	for _, name := range []string{"server", "client"} {
		a.sign(t, name, certificateFor("127.0.0.1"))
	}
	files := TLSFiles{CACert: a.file("ca.pem"), Cert: a.file("server.pem"), Key: a.file("server.key"), Name: "127.0.0.1"}
	config, err := files.Config()
	if err != nil {
		t.Fatal(err)
	}
	program := testkit.StartSubject(t, "mem:mib=8,rate=2", "anonshared")
	s := serveCRIU(t, "lz4", "", ServerOptions{TLS: config}, nil)
	flags := []string{"--tls", "--tls-cacert", a.file("ca.pem"), "--tls-cert", a.file("client.pem"), "--tls-key", a.file("client.key")}
	if _, err := criuDump(t, program.PID(), s, append(flags, "--leave-stopped")...); err != nil {
		if strings.Contains(err.Error(), "TLS support") {
			require.Missing(t, "criu-tls", "CRIU was built without GnuTLS")
		}
		t.Fatal(err)
	}
	if err := s.wait(t); err != nil {
		t.Fatal(err)
	}
	c, err := chain.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	compareWithProcesses(t, c)
	if s.got.Segments != 1 {
		t.Errorf("%d segments of shared memory", s.got.Segments)
	}
}

// A dump that fails before it has sent anything ends the server too.
func TestServerEndsWhenTheDumpFails(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	s := serveCRIU(t, "lz4", "", ServerOptions{}, nil)
	if _, err := criuDump(t, 1<<22-1, s); err == nil {
		t.Fatal("CRIU dumped a process that is not there")
	}
	if err := s.wait(t); err == nil || !strings.Contains(err.Error(), "no memory was sent") {
		t.Errorf("the server says: %v", err)
	}
}
