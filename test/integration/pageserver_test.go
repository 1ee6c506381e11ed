package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/testkit"
)

// sentKinds go through the page server: every way in which CRIU sends memory.
var sentKinds = []string{"memory-written", "memory-kinds", "memory-shared", "sysv-shm", "threads", "tree", "network"}

// buildStasis builds the program.
func buildStasis(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stasis")
	if out, err := exec.Command(require.Program(t, "go"), "build", "-o", path, "stasis/cmd/stasis").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// pageServer is one that runs.
type pageServer struct {
	cmd    *exec.Cmd
	output string // file with what it says to people
	result string // file with what it says to programs
	port   string
}

var listening = regexp.MustCompile(`listening on 127\.0\.0\.1:(\d+)`)

// startPageServer starts one and waits until it says that it is ready. It is bound to end with the test.
func startPageServer(t testkit.T, stasis, dir string, args ...string) (*pageServer, error) {
	t.Helper()
	ready, tell, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	defer tell.Close()
	s := &pageServer{output: dir + ".output", result: dir + ".result"}
	output, err1 := os.Create(s.output)
	result, err2 := os.Create(s.result)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	defer output.Close()
	defer result.Close()
	args = append([]string{"page-server", "--images-dir", dir, "--status-fd", "3", "--output", "json"}, args...)
	s.cmd = exec.CommandContext(t.Context(), stasis, args...)
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.ExtraFiles = result, output, []*os.File{tell}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	tell.Close()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return nil, fmt.Errorf("the server is not ready: %w", s.wait())
	}
	said := listening.FindStringSubmatch(s.said())
	if said == nil {
		return nil, fmt.Errorf("the server does not say where it listens: %q", s.said())
	}
	s.port = said[1]
	return s, nil
}

// said is what it said to people so far.
func (s *pageServer) said() string {
	text, err := os.ReadFile(s.output)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// wait waits for its end.
func (s *pageServer) wait() error {
	if err := s.cmd.Wait(); err != nil {
		result, _ := os.ReadFile(s.result)
		return fmt.Errorf("page server: %w: %s%s", err, s.said(), result)
	}
	return nil
}

// figures are those of the result that tests look at.
type figures struct {
	Pages   int64
	Holes   int64
	Freed   int64
	Figures struct {
		Memory     int64 `json:"bytes_memory"`
		Stored     int64 `json:"bytes_stored"`
		Referenced int64 `json:"bytes_referenced"`
	}
}

func (s *pageServer) figures() (f figures, err error) {
	text, err := os.ReadFile(s.result)
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	return f, err
}

// criuDump has stock CRIU dump to a folder and send the memory to a server.
func criuDump(t testkit.T, pid int, images, port string, flags ...string) error {
	t.Helper()
	args := append([]string{"dump", "--tree", strconv.Itoa(pid), "--images-dir", images, "--log-file", "log", "-v2",
		"--page-server", "--address", "127.0.0.1", "--port", port}, flags...)
	if err := exec.CommandContext(t.Context(), require.CRIU(t), args...).Run(); err != nil {
		log, _ := os.ReadFile(filepath.Join(images, "log"))
		return fmt.Errorf("criu %s: %w\n%s", strings.Join(args, " "), err, log)
	}
	return nil
}

// sending dumps with stock CRIU, which sends its memory to a page server on top of the checkpoint before, and restores with Stasis
// what import makes of both.
type sending struct {
	library
	stasis string
	parent *string // folder of the last checkpoint
}

func (s sending) Dump(t testkit.T, pid int, dir string, needs testkit.Needs, kill bool) error {
	t.Helper()
	images, to := filepath.Join(dir, "criu"), filepath.Join(dir, "memory")
	if err := os.Mkdir(images, 0o700); err != nil {
		return err
	}
	args := []string{"--compression", "zstd"}
	if *s.parent != "" {
		args = append(args, "--parent", *s.parent)
	}
	server, err := startPageServer(t, s.stasis, to, args...)
	if err != nil {
		return err
	}
	flags := needs.Flags()
	if !kill {
		flags = append(flags, "--leave-running")
	}
	if err := errors.Join(criuDump(t, pid, images, server.port, flags...), server.wait()); err != nil {
		return err
	}
	got, err := server.figures()
	if err != nil {
		return err
	}
	t.Logf("%d pages were sent; of %d KiB of memory %d KiB are the parent's, %d KiB were stored",
		got.Pages, got.Figures.Memory>>10, got.Figures.Referenced>>10, got.Figures.Stored>>10)
	if *s.parent != "" && got.Figures.Referenced == 0 {
		return errors.New("nothing is as in the parent")
	}
	*s.parent = to
	return s.assemble(t, images, to, filepath.Join(dir, "checkpoint"))
}

// assemble copies CRIU's images to the memory and imports both.
func (s sending) assemble(t testkit.T, images, memory, to string) error {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(images, "*.img"))
	if err != nil {
		return err
	}
	for _, path := range found {
		if name := filepath.Base(path); strings.HasPrefix(name, "pagemap-") || strings.HasPrefix(name, "pages-") {
			return fmt.Errorf("CRIU left %s on its own disk", name)
		}
		if err := os.Rename(path, filepath.Join(memory, filepath.Base(path))); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(t.Context(), s.stasis, "import", memory, "--dir", to).CombinedOutput(); err != nil {
		return fmt.Errorf("import: %w: %s", err, out)
	}
	return nil
}

func (s sending) Restore(t testkit.T, dir string, needs testkit.Needs) error {
	t.Helper()
	return s.library.Restore(t, filepath.Join(dir, "checkpoint"), needs)
}

// TestPageServer: what stock CRIU dumped through the page server, Stasis restores.
func TestPageServer(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	stasis := buildStasis(t)
	for _, kind := range testkit.Kinds() {
		if slices.Contains(sentKinds, kind.Name) {
			t.Run(kind.Name, func(t *testing.T) {
				testkit.RoundTrip(t, kind, sending{stasis: stasis, parent: new(string)})
			})
		}
	}
}

// The server in the background: it tells its pid, serves one sender and no second one, and ends.
func TestPageServerInTheBackground(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	stasis, base := buildStasis(t), t.TempDir()
	dir := filepath.Join(base, "memory")
	out, err := exec.Command(stasis, "page-server", "-D", dir, "--daemon", "--pidfile", "pid", "--log-file", "log").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), fmt.Sprintf("process %d;", pid)) {
		t.Errorf("it tells %q, and its pid is %d", out, pid)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("it does not run: %v", err)
	}
	defer unix.Close(pidfd)
	t.Cleanup(func() { _ = unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0) })
	said, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	at := listening.FindSubmatch(said)
	if at == nil {
		t.Fatalf("it does not say where it listens: %q", said)
	}
	program := testkit.StartSubject(t, "mem:mib=16,rate=2")
	if err := criuDump(t, program.PID(), t.TempDir(), string(at[1]), "--leave-running"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.OpenFolder(dir); err != nil {
		t.Errorf("CRIU ended, and there is no checkpoint: %v", err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int((20 * time.Second).Milliseconds())); n != 1 {
		t.Errorf("it does not end: %v", err)
	}
	if conn, err := net.Dial("tcp", "127.0.0.1:"+string(at[1])); err == nil {
		conn.Close()
		t.Error("there is a second sender")
	}
	program.Work(t)
	program.Prove(t)

	// What can't start in the background says why in the foreground.
	out, err = exec.Command(stasis, "page-server", "-D", dir, "--daemon").CombinedOutput()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.Contains(string(out), "already exists") {
		t.Errorf("a second one for that folder: %v: %s", err, out)
	}
}

// A sender that is killed on its way leaves no checkpoint, and its processes run on.
func TestPageServerLosesItsSender(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	stasis, dir := buildStasis(t), filepath.Join(t.TempDir(), "memory")
	server, err := startPageServer(t, stasis, dir)
	if err != nil {
		t.Fatal(err)
	}
	// Between CRIU and the server is a connection that breaks after a while.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go breaks(l, server.port)
	program := testkit.StartSubject(t, "mem:mib=64,rate=2")
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := criuDump(t, program.PID(), t.TempDir(), port); err == nil {
		t.Error("CRIU's dump succeeded")
	}
	if err := server.wait(); err == nil {
		t.Errorf("the server says that all is well: %s", server.said())
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it left its folder")
	}
	program.Work(t)
	program.Prove(t)
}

// breaks passes 10 MiB of one connection on, and then breaks it.
func breaks(l net.Listener, port string) {
	from, err := l.Accept()
	if err != nil {
		return
	}
	defer from.Close()
	to, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return
	}
	defer to.Close()
	go func() { // answers
		b := make([]byte, 64)
		for {
			n, err := to.Read(b)
			if err != nil {
				return
			}
			if _, err := from.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	b := make([]byte, 64<<10)
	for total := 0; total < 10<<20; {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
		total += n
	}
}
