package stasis

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
)

// freePID is a pid that nobody has: that of a process that has just been
// collected.
func freePID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func start(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func treeOf(pids ...int) *Manifest {
	m := &Manifest{}
	for _, pid := range pids {
		m.Processes = append(m.Processes, image.Process{PID: pid, Threads: []int{pid}})
	}
	return m
}

// expect looks for exactly one error, which holds all the parts.
func (c *conflicts) expect(t *testing.T, parts ...string) {
	t.Helper()
	if len(c.errors) != 1 {
		t.Fatalf("conflicts %v (warnings %v), want one that says %q", c.errors, c.warnings, parts)
	}
	for _, part := range parts {
		if !strings.Contains(c.errors[0].Error(), part) {
			t.Errorf("conflict %q does not say %q", c.errors[0], part)
		}
	}
}

func TestCheckFreePIDs(t *testing.T) {
	var c conflicts
	if err := c.checkPIDs(t.Context(), treeOf(freePID(t))); err != nil || len(c.errors) > 0 || len(c.warnings) > 0 {
		t.Errorf("a free pid: %v, %v, %v", err, c.errors, c.warnings)
	}
}

func TestCheckNamesWhoHasAPID(t *testing.T) {
	cmd := start(t, "sleep", "1000")
	var c conflicts
	if err := c.checkPIDs(t.Context(), treeOf(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	c.expect(t, fmt.Sprintf("process %d (sleep)", cmd.Process.Pid), "end it")
}

func TestCheckNamesWhoHasAThreadID(t *testing.T) {
	var other int // a thread of this program that is not its leader
	names, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		fmt.Sscan(name.Name(), &other)
		if other != os.Getpid() {
			break
		}
	}
	if other == os.Getpid() {
		t.Fatal("this program has one thread only")
	}
	var c conflicts
	if err := c.checkPIDs(t.Context(), treeOf(other)); err != nil {
		t.Fatal(err)
	}
	c.expect(t, fmt.Sprintf("process %d", os.Getpid()), fmt.Sprintf("thread id %d", other), "Stasis itself")
}

// A pid stays in use as long as a process is in the group or the session of
// that number, also when its leader has been collected. With job control, the
// shell's child gets a group of its own.
func TestCheckNamesWhoHasAGroupOrSession(t *testing.T) {
	for use, jobControl := range map[string]string{"process group": "set +m", "session": "set -m"} {
		out, err := exec.Command("setsid", "bash", "-c", jobControl+"; sleep 1000 >/dev/null 2>&1 & echo $!").Output()
		if err != nil {
			t.Fatal(err)
		}
		var child int
		fmt.Sscan(string(out), &child)
		t.Cleanup(func() { unix.Kill(child, unix.SIGKILL) })
		session, err := unix.Getsid(child)
		if err != nil || session == child {
			t.Fatalf("session of %d: %d, %v", child, session, err)
		}
		var c conflicts
		if err := c.checkPIDs(t.Context(), treeOf(session)); err != nil {
			t.Fatal(err)
		}
		c.expect(t, fmt.Sprintf("process %d (", child), fmt.Sprintf("the pid %d as the number of its %s", session, use))
	}
}

func TestCheckWaitsForKilledProcesses(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	unix.Kill(cmd.Process.Pid, unix.SIGKILL)
	waitState(t, cmd.Process.Pid, 'Z')
	collected := make(chan error, 1)
	time.AfterFunc(30*time.Millisecond, func() { collected <- cmd.Wait() })
	var c conflicts
	if err := c.checkPIDs(t.Context(), treeOf(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	<-collected
	if len(c.errors) > 0 || len(c.warnings) != 1 || !strings.Contains(c.warnings[0], "(sleep)") {
		t.Errorf("conflicts %v, warnings %q; want none, and one about the wait for sleep", c.errors, c.warnings)
	}
}

// waitState waits for a process to reach a state of /proc/PID/stat.
func waitState(t *testing.T, pid int, state byte) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.LastIndexByte(raw, ')'); raw[at+2] == state {
			return
		}
	}
	t.Fatalf("process %d never got to state %c", pid, state)
}

func TestCheckWaitsLessBesideOtherConflicts(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	unix.Kill(cmd.Process.Pid, unix.SIGKILL)
	waitState(t, cmd.Process.Pid, 'Z')
	c := conflicts{errors: []error{errors.New("something else")}}
	if err := c.checkPIDs(t.Context(), treeOf(cmd.Process.Pid)); err != nil || len(c.errors) != 2 {
		t.Fatalf("%v, %v; want both conflicts", err, c.errors)
	}
	if text := c.errors[1].Error(); !strings.Contains(text, "has ended") || !strings.Contains(text, fmt.Sprint(os.Getpid())) {
		t.Errorf("%q does not name the parent that has to collect it", text)
	}
}

func TestCheckHost(t *testing.T) {
	here, err := hostFacts()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name              string
		change            func(h *image.Host)
		conflict, warning string
		evenForced        bool
	}{
		{name: "same", change: func(*image.Host) {}},
		{name: "arch", change: func(h *image.Host) { h.Arch = "aarch64" }, conflict: "aarch64", evenForced: true},
		{name: "page size", change: func(h *image.Host) { h.PageSize = 65536 }, conflict: "65536", evenForced: true},
		{name: "kernel", change: func(h *image.Host) { h.Kernel = "5.10.0-1" }, warning: "5.10.0-1"},
		{name: "cpu", change: func(h *image.Host) { h.CPUFeatures = append(slices.Clone(h.CPUFeatures), "amx_tile", "avx999") }, conflict: "amx_tile, avx999"},
		{name: "speed", change: func(h *image.Host) { h.CPUFeatures = append(slices.Clone(h.CPUFeatures), "hwp_epp", "ibrs") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, force := range []bool{false, true} {
				was := here
				test.change(&was)
				c := conflicts{force: force}
				c.checkHost(was, here)
				c.checkCPU(was, here, "")
				if force && !test.evenForced {
					if len(c.errors) > 0 || (test.conflict != "") != (len(c.warnings) > 0 && test.warning == "") {
						t.Errorf("forced: conflicts %v, warnings %v", c.errors, c.warnings)
					}
					continue
				}
				if test.conflict != "" {
					c.expect(t, test.conflict)
				} else if len(c.errors) > 0 {
					t.Errorf("conflicts %v, want none", c.errors)
				}
				if got := strings.Join(c.warnings, "; "); !strings.Contains(got, test.warning) || test.warning == "" && got != "" {
					t.Errorf("warnings %q, want %q", got, test.warning)
				}
			}
		})
	}
}

func TestCheckRoom(t *testing.T) {
	var c conflicts
	c.checkRoom(t.TempDir(), image.Figures{BytesMemory: 1 << 20}, []image.FileInfo{{Name: "core-1.img", Size: 4096}})
	if len(c.errors) > 0 {
		t.Errorf("a megabyte: %v", c.errors)
	}
	c.checkRoom(t.TempDir(), image.Figures{BytesMemory: 1 << 50}, nil)
	c.expect(t, "of memory", "are available")
	c = conflicts{}
	c.checkRoom(t.TempDir(), image.Figures{}, []image.FileInfo{{Name: "tmpfs.img", Size: 1 << 60}})
	c.expect(t, "CRIU's images need", "are free there")
	c = conflicts{}
	c.checkRoom(t.TempDir(), image.Figures{BytesMemory: 1 << 50, ZeroPages: 1 << 38}, nil)
	if len(c.errors) > 0 {
		t.Errorf("pages of zeros take memory: %v", c.errors)
	}
}

func TestCheckPorts(t *testing.T) {
	t.Setenv("GODEBUG", "multipathtcp=0") // else what listens has a protocol of its own
	listening, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	_, port, _ := net.SplitHostPort(listening.Addr().String())
	m := &Manifest{Processes: []image.Process{{PID: 7, Comm: "server", Sockets: []image.Socket{
		{Protocol: "tcp", Local: "127.0.0.1:" + port, State: "listen"},
		{Protocol: "tcp6", Local: "[::1]:" + port, State: "listen"},
	}}}}
	var c conflicts
	c.checkPorts(m)
	c.expect(t, "127.0.0.1:"+port, fmt.Sprintf("process %d", os.Getpid()), "--force")
	c = conflicts{}
	m.Processes[0].OwnNamespaces = []string{"net"}
	if c.checkPorts(m); len(c.errors) > 0 {
		t.Errorf("a network namespace of its own: %v", c.errors)
	}
	c = conflicts{holders: map[int]bool{os.Getpid(): true}}
	m.Processes[0].OwnNamespaces = nil
	if c.checkPorts(m); len(c.errors) > 0 {
		t.Errorf("told twice what one process holds: %v", c.errors)
	}
}

// TestCheckConnections: an end that somebody has stands in the way, one that the
// kernel is about to close is waited for.
func TestCheckConnections(t *testing.T) {
	t.Setenv("GODEBUG", "multipathtcp=0")
	listening, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	client, err := net.Dial("tcp4", listening.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	m := &Manifest{Processes: []image.Process{{PID: 7, Comm: "server", Sockets: []image.Socket{
		{Protocol: "tcp", Local: client.LocalAddr().String(), Remote: client.RemoteAddr().String(), State: "established"},
	}}}}
	var c conflicts
	if err := c.checkConnections(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	c.expect(t, client.LocalAddr().String(), fmt.Sprintf("process %d", os.Getpid()), "--tcp-close")

	// Its peer has confirmed the end, and keeps its own end open.
	client.Close()
	c = conflicts{}
	if err := c.checkConnections(t.Context(), m); err != nil || len(c.errors) > 0 {
		t.Errorf("%v, %v", err, c.errors)
	}
}

func TestCheckReportsEverythingAtOnce(t *testing.T) {
	cmd := start(t, "sleep", "1000")
	r := restoreOf(t, treeOf(cmd.Process.Pid), filesImage(t, criu.File{Path: "/no/such/file", Mode: unix.S_IFREG | 0o600, Size: 1}))
	r.checkpoint.Manifest().Host.CPUFeatures = []string{"avx999"}
	err := r.check(t.Context())
	for _, part := range []string{"sleep", "/no/such/file", "avx999"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
}

func TestCheckFindsDamagedImages(t *testing.T) {
	r := restoreOf(t, treeOf(freePID(t)), append(filesImage(t), 0xff, 0xff, 0xff, 0xff))
	if err := r.check(t.Context()); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

func BenchmarkCheckPIDs(b *testing.B) {
	m := treeOf(1<<22-1, 1<<22-2)
	for b.Loop() {
		var c conflicts
		if err := c.checkPIDs(b.Context(), m); err != nil {
			b.Fatal(err)
		}
	}
}
