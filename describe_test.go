package stasis

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stasis/internal/image"
	"stasis/internal/proc"
)

// selfAsTree is this test program as a tree of one process.
func selfAsTree(t *testing.T) []*proc.Task {
	t.Helper()
	task, err := proc.ReadTask(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return []*proc.Task{task}
}

func summarizeSelf(t *testing.T) image.Process {
	t.Helper()
	list, err := summarize(selfAsTree(t))
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

func TestSummaryListsFilesAndSockets(t *testing.T) {
	t.Setenv("GODEBUG", "multipathtcp=0") // else what listens has a protocol of its own
	listening, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	client, err := net.Dial("tcp", listening.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	name := filepath.Join(t.TempDir(), "socket")
	unixListening, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer unixListening.Close()

	p := summarizeSelf(t)
	if p.PPID != os.Getppid() {
		t.Errorf("the root's parent is %d, want that outside, %d", p.PPID, os.Getppid())
	}
	if len(p.OwnNamespaces) != 0 {
		t.Errorf("namespaces of its own: %v, want none", p.OwnNamespaces)
	}
	if p.Mappings["stack"].Count != 1 || p.Mappings["anonymous"].Bytes == 0 {
		t.Errorf("mappings by kind: %v", p.Mappings)
	}
	want := []image.Socket{
		{Protocol: "tcp", Local: listening.Addr().String(), State: "listen"},
		{Protocol: "tcp", Local: client.LocalAddr().String(), Remote: listening.Addr().String(), State: "established"},
		{Protocol: "unix", Local: name, State: "listen"},
	}
	for _, w := range want {
		if !slices.ContainsFunc(p.Sockets, func(s image.Socket) bool { w.FD = s.FD; return s == w }) {
			t.Errorf("%+v is not among %+v", w, p.Sockets)
		}
	}
}

func TestSummaryNotesFilesThatMustNotChange(t *testing.T) {
	dir := t.TempDir()
	open := func(name string, flags int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		return path
	}
	read, written, both, deleted := open("read", os.O_RDONLY), open("written", os.O_RDWR), open("both", os.O_RDONLY), open("deleted", os.O_RDONLY)
	writer, err := os.OpenFile(both, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	os.Remove(deleted)

	p := summarizeSelf(t)
	needs := make(map[string]image.NeededFile)
	for _, n := range p.Needs {
		needs[n.Path] = n
	}
	info, err := os.Stat(read)
	if err != nil {
		t.Fatal(err)
	}
	if got := needs[read]; got.Size != 4 || got.MtimeNS != info.ModTime().UnixNano() {
		t.Errorf("a file that is read: %+v, want size 4 and time %d", got, info.ModTime().UnixNano())
	}
	exe, _ := os.Readlink("/proc/self/exe")
	if _, ok := needs[exe]; !ok {
		t.Errorf("the executable %s is not among %v", exe, p.Needs)
	}
	for _, path := range []string{written, both, deleted, deleted + " (deleted)", "/dev/null"} {
		if n, ok := needs[path]; ok {
			t.Errorf("%+v is kept, and is written, gone or no file", n)
		}
	}
}

func TestSummaryCountsPIDsFromInside(t *testing.T) {
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "sleep 1000 & echo ready; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip("unshare: ", err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	ready := make([]byte, 6)
	if _, err := out.Read(ready); err != nil {
		t.Fatal(err)
	}
	children, err := proc.Children(cmd.Process.Pid)
	if err != nil || len(children) != 1 {
		t.Fatalf("children of unshare: %v, %v", children, err)
	}
	tree, err := proc.Tree(children[0])
	if err != nil {
		t.Fatal(err)
	}
	list, err := summarize(tree)
	if err != nil {
		t.Fatal(err)
	}
	root, child := list[0], list[1]
	if root.PID != 1 || root.PPID != cmd.Process.Pid || !slices.Equal(root.Threads, []int{1}) {
		t.Errorf("root: pid %d, parent %d, threads %v; want 1, %d, [1]", root.PID, root.PPID, root.Threads, cmd.Process.Pid)
	}
	if child.PPID != 1 || child.PID == tree[1].PID || !slices.Equal(child.Threads, []int{child.PID}) {
		t.Errorf("child: pid %d, parent %d, threads %v; want them as seen inside", child.PID, child.PPID, child.Threads)
	}
	if !slices.Contains(root.OwnNamespaces, "pid") {
		t.Errorf("namespaces of its own: %v, want pid among them", root.OwnNamespaces)
	}
	if n := numbersOf(&Manifest{Processes: list}); len(n) != 0 {
		t.Errorf("pids %v have to be free here, although they lie in their own namespace", n)
	}
}

func TestSummarySurvivesProcessesThatEnd(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	task, err := proc.ReadTask(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	list, err := summarize(append(selfAsTree(t), task))
	if err != nil || len(list) != 2 || list[1].Comm != "sleep" {
		t.Errorf("a process that has just ended: %+v, %v", list, err)
	}
}

func TestHostFacts(t *testing.T) {
	host, err := hostFacts()
	if err != nil {
		t.Fatal(err)
	}
	if host.Kernel == "" || host.Arch == "" || host.CPUModel == "" || len(host.CPUFeatures) == 0 || host.PageSize == 0 {
		t.Errorf("incomplete: %+v", host)
	}
	if host.Arch == "x86_64" && !slices.Contains(host.CPUFeatures, "sse2") {
		t.Errorf("no sse2 in %s", strings.Join(host.CPUFeatures, " "))
	}
}

// BenchmarkSummarize shows what a tree costs that is looked at before its
// freeze: 100 descriptors a process.
func BenchmarkSummarize(b *testing.B) {
	var files []*os.File
	for range 100 {
		f, err := os.Open("/etc/passwd")
		if err != nil {
			b.Fatal(err)
		}
		files = append(files, f)
	}
	task, err := proc.ReadTask(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := summarize([]*proc.Task{task}); err != nil {
			b.Fatal(err)
		}
	}
	for _, f := range files {
		f.Close()
	}
}
