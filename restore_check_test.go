package stasis

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/codec"
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/store"
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

func TestCheckDoesNotWaitBesideOtherConflicts(t *testing.T) {
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

// filesImage encodes CRIU's list of files.
func filesImage(t *testing.T, files ...criu.File) []byte {
	t.Helper()
	out := binary.LittleEndian.AppendUint32(nil, 0x54564319)
	out = binary.LittleEndian.AppendUint32(out, 0x56303138)
	for i, f := range files {
		kind, id, flags := fdinfo.FdTypes_REG, uint32(i+1), uint32(unix.O_RDONLY)
		if f.Writable {
			flags = unix.O_RDWR
		}
		reg := &regfile.RegFileEntry{Id: &id, Flags: &flags, Pos: proto.Uint64(0), Name: &f.Path, Mode: &f.Mode, Fown: &fown.FownEntry{
			Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0),
		}}
		if f.Size >= 0 {
			reg.Size = proto.Uint64(uint64(f.Size))
		}
		raw, err := proto.Marshal(&fdinfo.FileEntry{Type: &kind, Id: &id, Reg: reg})
		if err != nil {
			t.Fatal(err)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(len(raw)))
		out = append(out, raw...)
	}
	return out
}

// restoreOf is a restore of a checkpoint of no memory with these files, that
// has been opened.
func restoreOf(t *testing.T, m *Manifest, files []byte) *restore {
	t.Helper()
	host, err := hostFacts()
	if err != nil {
		t.Fatal(err)
	}
	host.CRIUVersion = "4.2.1"
	m.Host, m.Kind, m.Created = host, image.KindFull, time.Now()
	dir := filepath.Join(t.TempDir(), "checkpoint")
	target, err := store.CreateFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	none, _ := codec.New("none", 0)
	w, err := image.NewWriter(target, image.WriterOptions{Shards: 1, Codec: none})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.PutFile(criu.FilesImage, bytes.NewReader(files)); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(nil, m); err != nil {
		t.Fatal(err)
	}
	r := &restore{opts: RestoreOptions{Dir: dir}, criu: &criu.Binary{Version: 40201}}
	src, err := store.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.checkpoint, err = image.Open(src); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.checkpoint.Close() })
	return r
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "data")
	const content = "as it was"
	writeFile := func(text string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	later := time.Now().Add(time.Hour)
	for _, test := range []struct {
		name      string
		change    func()
		writable  bool
		size      int64
		otherHost bool
		conflict  string
		warning   string
	}{
		{name: "unchanged", change: func() {}, size: int64(len(content))},
		{name: "missing", change: func() { os.Remove(path) }, size: int64(len(content)), conflict: "is not there"},
		{name: "longer", change: func() { writeFile(content+"!", 0o600) }, size: int64(len(content)), conflict: "has 10 bytes, and had 9"},
		{name: "any length", change: func() { writeFile(content+"!", 0o600) }, size: -1},
		{name: "mode", change: func() { os.Chmod(path, 0o640) }, size: int64(len(content)), conflict: "chmod 600"},
		{name: "a folder now", change: func() { os.Remove(path); os.Mkdir(path, 0o700) }, size: int64(len(content)), conflict: "is a folder, and was a file"},
		{name: "touched", change: func() { os.Chtimes(path, later, later) }, size: int64(len(content)), conflict: "was modified since"},
		{name: "touched elsewhere", change: func() { os.Chtimes(path, later, later) }, size: int64(len(content)), otherHost: true, warning: "another time"},
		{name: "written before", change: func() { os.Chtimes(path, time.Now(), time.Now()) }, writable: true, size: int64(len(content))},
		{name: "written after", change: func() { os.Chtimes(path, later, later) }, writable: true, size: int64(len(content)), conflict: "was modified since"},
	} {
		t.Run(test.name, func(t *testing.T) {
			os.RemoveAll(path)
			writeFile(content, 0o600)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			m := treeOf(freePID(t))
			if !test.writable {
				m.Processes[0].Needs = []image.NeededFile{{Path: path, Size: test.size, MtimeNS: info.ModTime().UnixNano()}}
			}
			r := restoreOf(t, m, filesImage(t,
				criu.File{Path: path, Mode: unix.S_IFREG | 0o600, Size: test.size, Writable: test.writable},
				criu.File{Path: dir, Mode: unix.S_IFDIR | 0o755, Size: -1},
				criu.File{Path: "/dev/pts/12345", Mode: unix.S_IFCHR | 0o620, Size: -1},
				criu.File{Path: "/proc/12345/stat", Mode: unix.S_IFREG | 0o444, Size: -1},
			))
			if test.otherHost {
				r.checkpoint.Manifest().Host.Hostname = "elsewhere"
			}
			test.change()
			begun := time.Now()
			err = r.check(t.Context())
			t.Logf("%v: %v, %q", time.Since(begun), err, r.result.Warnings)
			if (err != nil) != (test.conflict != "") || err != nil && !strings.Contains(err.Error(), test.conflict) {
				t.Errorf("%v, want a conflict %q", err, test.conflict)
			}
			if err != nil && (!errors.Is(err, ErrConflict) || FailedStep(err) != StepCheck) {
				t.Errorf("%v is no ErrConflict of the check", err)
			}
			if got := strings.Join(r.result.Warnings, ";"); !strings.Contains(got, test.warning) || test.warning == "" && got != "" {
				t.Errorf("warnings %q, want %q", got, test.warning)
			}
			if r.opts.Force = true; r.check(t.Context()) != nil {
				t.Errorf("forced, and still: %v", r.check(t.Context()))
			}
		})
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
