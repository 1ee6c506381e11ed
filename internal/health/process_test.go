package health

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
	"stasis/internal/subject"
	"stasis/internal/testkit"
)

func diesWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} }

// begin starts a subject in a role and returns the descriptor that matters.
func begin(t *testing.T, role, dir string) (*subject.Subject, int) {
	t.Helper()
	t.Setenv(folderVariable, dir)
	start := subject.Start
	if role == "job" {
		start = subject.StartJob
	}
	s := start(t, role)
	var fd int
	var word string
	line := s.Hear()
	if n, err := fmt.Sscan(line, &fd, &word); n < 2 || fd < 0 {
		t.Skipf("%s cannot be had here: %s (%v)", role, line, err)
	}
	return s, fd
}

// troubles are the results that are not good.
func troubles(results []Result) []Result {
	var bad []Result
	for _, r := range results {
		if r.Status != OK {
			bad = append(bad, r)
		}
	}
	return bad
}

func TestProcess(t *testing.T) {
	require.Root(t)
	for _, test := range []struct {
		role   string
		status Status
		what   string // in the detail
		remedy string
	}{
		{"job", Warn, "leader of its session", "--shell-job"},
		{"io_uring", Fail, "io_uring", "UV_USE_IO_URING=0"},
		{"userfaultfd", Fail, "userfaultfd", "before the dump"},
		{"perf", Fail, "perf_event", "profiler"},
		{"bpf", Warn, "BPF map", "close it"},
		{"packets", Fail, "O_DIRECT", "close it"},
		{"queue", Fail, "message queue", "close it"},
		{"secret", Fail, "memfd_secret", "before the dump"},
		{"vsock", Fail, "VSOCK", "close it"},
		{"fuse", Fail, "FUSE", "unmount"},
		{"lock", Warn, "holds a lock on", "--file-locks"},
		{"ghost", Warn, "deleted has 3 MiB", "--ghost-limit 3145728"},
		{"renamed", Warn, "lost the name", "--link-remap"},
		{"tcp", Warn, "127.0.0.1:", "--tcp-close"},
		{"waiting", Warn, "wait to be accepted", "--skip-in-flight"},
		{"unix", Fail, "outside of the tree", "both ends"},
		{"unaccepted", Fail, "waits to be accepted by process", "both ends"},
		{"datagram", Warn, "outside of the tree", "--ext-unix-sk"},
		{"sysv", Fail, "System V", "unshare --ipc"},
		{"nested", Fail, "uts", "alone"},
	} {
		t.Run(test.role, func(t *testing.T) {
			dir := t.TempDir()
			listen(t, dir)
			s, fd := begin(t, test.role, dir)
			bad := troubles(Process(t.Context(), s.PID))
			for _, r := range bad {
				t.Logf("%s %s: %s → %s", r.Status, r.Name, r.Detail, r.Remedy)
				where := fmt.Sprintf("process %d (", s.PID)
				if fd > 0 {
					where = fmt.Sprintf("process %d (%s) fd %d", s.PID, comm(t, s.PID), fd)
				}
				if r.Status == test.status && strings.Contains(r.Detail, test.what) && strings.Contains(r.Remedy, test.remedy) &&
					(strings.Contains(r.Detail, where) || test.role == "nested") {
					return
				}
			}
			t.Errorf("%+v\nwant %s of fd %d about %q → %q", bad, test.status, fd, test.what, test.remedy)
		})
	}
}

// listen makes sockets that subjects connect with.
func listen(t *testing.T, dir string) {
	t.Helper()
	stream, err := net.Listen("unix", filepath.Join(dir, "stream"))
	if err != nil {
		t.Fatal(err)
	}
	busy, err := net.Listen("unix", filepath.Join(dir, "busy")) // accepts nobody
	if err != nil {
		t.Fatal(err)
	}
	dgram, err := net.ListenPacket("unixgram", filepath.Join(dir, "dgram"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := stream.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.Write([]byte("accepted"))
		}
	}()
	t.Cleanup(func() { stream.Close(); busy.Close(); dgram.Close() })
}

func comm(t *testing.T, pid int) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

func TestProcessFindsNothingWrong(t *testing.T) {
	s, _ := begin(t, "clean", t.TempDir())
	results := Process(t.Context(), s.PID)
	if bad := troubles(results); len(bad) > 0 {
		t.Errorf("found %+v in a program that can be dumped", bad)
	}
	if len(results) != 3 || !strings.Contains(results[0].Detail, "process") {
		t.Errorf("what is good is told as %+v", results)
	}
}

func TestProcessOfAnotherUser(t *testing.T) {
	require.Root(t)
	s, _ := begin(t, "other user", t.TempDir())
	bad := troubles(Process(t.Context(), s.PID))
	if require.HasCapability("CAP_SYS_RESOURCE") {
		if len(bad) > 0 {
			t.Errorf("with CAP_SYS_RESOURCE: %+v", bad)
		}
		return
	}
	if len(bad) != 1 || bad[0].Status != Fail || !strings.Contains(bad[0].Detail, "CAP_SYS_RESOURCE") {
		t.Errorf("%+v, want that CAP_SYS_RESOURCE is missing", bad)
	}
}

func TestProcessNamesItsTracer(t *testing.T) {
	require.Root(t)
	s, _ := begin(t, "clean", t.TempDir())
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(s.PID), 0, 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	bad := troubles(Process(t.Context(), s.PID))
	// A tracer is a thread; this one may be any of this program.
	if len(bad) != 1 || bad[0].Name != "tracer" || !strings.Contains(bad[0].Detail, "traces it") {
		t.Errorf("%+v, want the tracer", bad)
	}
}

func TestProcessWithTheMemoryOfItsParent(t *testing.T) {
	s := testkit.StartSubject(t, "sharing")
	bad := troubles(Process(t.Context(), s.PID()))
	if len(bad) != 1 || bad[0].Status != Fail || !strings.Contains(bad[0].Detail, "CLONE_VM") {
		t.Errorf("%+v, want that a child has the same memory", bad)
	}
}

func TestProcessWithTheTerminalOfAnother(t *testing.T) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("STASIS_TEST_TTY", fmt.Sprintf("/dev/pts/%d", n))
	s, fd := begin(t, "terminal", t.TempDir())
	bad := troubles(Process(t.Context(), s.PID))
	if len(bad) != 1 || bad[0].Name != "terminal" || !strings.Contains(bad[0].Detail, fmt.Sprintf("fd %d:", fd)) {
		t.Errorf("%+v, want that the other end of the terminal is outside", bad)
	}
}

// A program of 32 bits that sleeps: pause(2) in a loop.
func TestProcessOf32Bits(t *testing.T) {
	code := []byte{0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7}
	path := filepath.Join(t.TempDir(), "small")
	if err := os.WriteFile(path, elf32(code), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Skip("this kernel runs no 32-bit programs: ", err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	bad := troubles(Process(t.Context(), cmd.Process.Pid))
	if len(bad) != 1 || bad[0].Status != Warn || !strings.Contains(bad[0].Detail, "32-bit") {
		t.Errorf("%+v, want that it has 32 bits", bad)
	}
}

// elf32 makes an executable of one segment for i386.
func elf32(code []byte) []byte {
	const base, head = 0x08048000, 52 + 32
	le := func(v uint32) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }
	file := append([]byte("\x7fELF\x01\x01\x01"), make([]byte, 9)...)
	file = append(file, 2, 0, 3, 0) // executable, i386
	for _, v := range []uint32{1, base + head, 52, 0, 0} {
		file = append(file, le(v)...)
	}
	file = append(file, 52, 0, 32, 0, 1, 0, 40, 0, 0, 0, 0, 0)
	size := uint32(head + len(code))
	for _, v := range []uint32{1, 0, base, base, size, size, 5, 0x1000} {
		file = append(file, le(v)...)
	}
	return append(file, code...)
}

func TestProcessThatIsNotThere(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if r := Process(t.Context(), cmd.Process.Pid); len(r) != 1 || r[0].Status != Fail {
		t.Errorf("%+v, want one failure", r)
	}
}

func TestProcessThatWeRunIn(t *testing.T) {
	bad := troubles(Process(t.Context(), os.Getppid()))
	for _, r := range bad {
		if r.Status == Fail && strings.Contains(r.Detail, "inside the tree") {
			return
		}
	}
	t.Errorf("%+v does not say that this program runs inside the tree", bad)
}

func TestProcessOfTheKernel(t *testing.T) {
	raw, err := os.ReadFile("/proc/2/comm")
	if err != nil || strings.TrimSpace(string(raw)) != "kthreadd" {
		t.Skip("process 2 is none of the kernel's here")
	}
	for _, r := range Process(t.Context(), 2) {
		if r.Status == Fail && strings.Contains(r.Detail, "thread of the kernel") {
			return
		}
	}
	t.Error("a thread of the kernel can be dumped")
}

func TestManyPlacesAreToldTogether(t *testing.T) {
	s := &survey{found: make(map[finding]int)}
	for i := range 7 {
		s.note(Warn, "thing", "it is odd", "mend it", fmt.Sprintf("fd %d", i))
	}
	s.note(Fail, "other", "it is wrong", "drop it", "fd 9")
	r := s.results()
	if r[0].Status != Fail || r[1].Detail != "fd 0, fd 1, fd 2, fd 3, fd 4 and 2 more: it is odd" {
		t.Errorf("%+v", r)
	}
}
