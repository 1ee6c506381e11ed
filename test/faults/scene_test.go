package faults

import (
	gocontext "context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/image/reader"
	"stasis/internal/keeper"
	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/testkit"
)

// criuOptions let the program of the tests be dumped: it has connections.
var criuOptions = stasis.CRIUOptions{TCPEstablished: true}

func context() gocontext.Context { return gocontext.Background() }

// within waits for something that comes by itself.
func within(t *testing.T, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; <-time.After(2 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
	}
}

// identity is a process that cannot be mistaken for a later one with its pid.
type identity struct {
	pid   int
	start uint64
}

// there says whether the process still exists, a zombie too.
func (i identity) there() bool {
	_, _ = unix.Wait4(i.pid, nil, unix.WNOHANG, nil) // orphans come to this process
	task, err := proc.ReadTask(i.pid)
	return err == nil && task.StartTime == i.start
}

// scene is a program, a place for its checkpoint, and what it all was like
// before anything was broken.
type scene struct {
	t      *testing.T
	p      *testkit.Subject
	tree   []identity
	dir    string // of the next checkpoint; not there yet
	mounts string

	tracked bool // it may be tracked while nobody dumps it

	address string   // of its connections
	tables  []string // in the firewall, of other checkpoints
}

// features of the program: much state that must not be lost, little memory. Its
// connection needs a lock of the network. The last one comes after the children
// are born: memory that they share would be CRIU's to dump.
var features = []string{"tree:mib=2,children=2", "tcp", "threads:count=4", "mem:mib=16,rate=20,watch=no"}

func newScene(t *testing.T) *scene { t.Helper(); return newSceneOf(t, features...) }

func newSceneOf(t *testing.T, features ...string) *scene {
	t.Helper()
	require.Root(t)
	require.CRIU(t)
	s := &scene{t: t, p: testkit.StartSubject(t, features...), tables: tables(t)}
	s.look()
	s.newDir()
	s.mounts = mounts(t)
	// The program's own loopback address, see any_port in its sources.
	ip := 127<<24 + 64<<16 + s.p.PID()
	s.address = fmt.Sprintf("%d.%d.%d.%d", ip>>24, ip>>16&255, ip>>8&255, ip&255)
	t.Cleanup(func() {
		// A tree that ended with its checkpoint has left the lock to a restore.
		for _, table := range s.networkLocks() {
			_ = exec.Command(nft(s.t), "delete", "table", "inet", table).Run()
		}
	})
	return s
}

// in is the same scene for a part of the test.
func (s *scene) in(t *testing.T) *scene {
	t.Helper()
	part := *s
	part.t = t
	return &part
}

// look notes which processes the tree has.
func (s *scene) look() {
	s.t.Helper()
	testkit.Watch(s.p.PID())
	tree, err := proc.Tree(s.p.PID())
	if err != nil {
		s.t.Fatal(err)
	}
	s.tree = nil
	for _, task := range tree {
		s.tree = append(s.tree, identity{task.PID, task.StartTime})
	}
}

func (s *scene) newDir() {
	s.t.Helper()
	s.dir = filepath.Join(s.t.TempDir(), "checkpoint")
}

func mounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "criu") || strings.Contains(line, "stasis-work") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// unharmed wants the program to be as free as it was, its connections too, and
// its memory right. It may still be on its way to that.
func (s *scene) unharmed() {
	s.t.Helper()
	for _, id := range s.tree {
		within(s.t, "the program goes on", func() error { return s.free(id) })
	}
	if locks := s.networkLocks(); len(locks) > 0 {
		s.t.Errorf("the network is locked by the tables %v", locks)
	}
	s.p.Prove(s.t)
	s.p.Work(s.t)
	s.p.Prove(s.t)
}

// free is the function of that name; the writes of the process may be tracked
// for the next dump of a chain.
func (s *scene) free(id identity) error {
	err := free(id)
	if s.tracked && errors.Is(err, errTracked) {
		return nil
	}
	return err
}

var errTracked = errors.New("it has a userfaultfd")

// free checks one process: it lives, is neither stopped nor traced, and nothing
// was left in it.
func free(id identity) error {
	task, err := proc.ReadTask(id.pid)
	if err != nil {
		return fmt.Errorf("process %d is gone: %w", id.pid, err)
	}
	if task.StartTime != id.start {
		return fmt.Errorf("process %d is another one, which started at %d and not at %d", id.pid, task.StartTime, id.start)
	}
	for _, tid := range task.Threads {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", id.pid, tid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch {
			case key == "State" && strings.ContainsAny(value[:1], "tTZX"), key == "TracerPid" && value != "0":
				return fmt.Errorf("thread %d of process %d: %s %s", tid, id.pid, key, value)
			}
		}
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", id.pid))
	for _, fd := range fds {
		if path, _ := os.Readlink(fd); strings.Contains(path, "userfaultfd") {
			return fmt.Errorf("process %d holds a %s", id.pid, path)
		}
	}
	maps, err := proc.Smaps(id.pid)
	if err != nil {
		return err
	}
	for _, m := range maps {
		if m.Has("uw") || m.Has("um") {
			return fmt.Errorf("memory %#x of process %d: %w", m.Start, id.pid, errTracked)
		}
	}
	return nil
}

// nothingLeft wants all helpers of the worker gone, and no mount of theirs. Folders in memory are left to the next run.
func (s *scene) nothingLeft(w *worker) {
	s.t.Helper()
	tree, _ := proc.Tree(s.p.PID())
	for _, id := range w.left {
		if slices.ContainsFunc(tree, func(task *proc.Task) bool { return task.PID == id.pid }) {
			continue
		}
		within(s.t, "the end of the worker's helpers", func() error {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", id.pid))
			if id.there() && !isKeeper(line) {
				return fmt.Errorf("process %d (%q) is still there", id.pid, line)
			}
			return nil
		})
	}
	// Orphans come to this process.
	within(s.t, "the end of all guards and CRIUs", func() error {
		children, err := proc.Children(os.Getpid())
		for _, pid := range children {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if isKeeper(line) {
				continue
			}
			if text := string(line); strings.HasPrefix(text, "stasis-") || strings.Contains(text, "criu") {
				return fmt.Errorf("process %d (%q) is there", pid, text)
			}
		}
		return err
	})
	if now := mounts(s.t); now != s.mounts {
		s.t.Errorf("mounts are left:\n%s", now)
	}
}

// isKeeper: the process keeps trackers, which is meant to outlive a dump.
func isKeeper(cmdline []byte) bool { return strings.HasPrefix(string(cmdline), keeper.Name+"\x00") }

// networkLocks lists the tables of nftables in which CRIU has locked the
// connections of the tree since the scene began. CRIU names them by chance; they
// hold the addresses.
func (s *scene) networkLocks() []string {
	s.t.Helper()
	var found []string
	for _, table := range tables(s.t) {
		if slices.Contains(s.tables, table) {
			continue
		}
		rules, err := exec.Command(nft(s.t), "list", "table", "inet", table).Output()
		if err == nil && strings.Contains(string(rules), s.address+" ") {
			found = append(found, table)
		}
	}
	return found
}

func nft(t *testing.T) string { t.Helper(); return require.Program(t, "nft") }

// tables lists those that CRIU has made.
func tables(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command(nft(t), "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "table inet "); ok && strings.HasPrefix(name, "CRIU-") {
			names = append(names, name)
		}
	}
	return names
}

// swept wants the work folders of a worker gone: the next run removes those of
// one that was killed.
func (s *scene) swept(w *worker) {
	s.t.Helper()
	for _, dir := range w.dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			s.t.Errorf("the work folder %s is still there (%v)", dir, err)
		}
	}
}

// checkpoint says whether there is one. If there is, it must be whole; if not,
// nothing of one may be left.
func (s *scene) checkpoint() bool {
	s.t.Helper()
	src, err := store.OpenFolder(s.dir)
	if errors.Is(err, store.ErrNoCheckpoint) {
		if left, _ := os.ReadDir(s.dir); len(left) > 0 {
			s.t.Errorf("there is no checkpoint, but %d files: %v", len(left), left)
		}
		return false
	}
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := reader.Open(src)
	if err != nil {
		s.t.Fatalf("a checkpoint that cannot be used: %v", err)
	}
	defer c.Close()
	if err := c.Verify(context(), 2, nil); err != nil {
		s.t.Fatalf("a damaged checkpoint: %v", err)
	}
	return true
}

// dump makes a checkpoint without faults.
func (s *scene) dump(after stasis.After) {
	s.t.Helper()
	_, err := stasis.Dump(context(), stasis.DumpOptions{PID: s.p.PID(), Dir: s.dir, After: after, Streams: 2, CRIU: criuOptions})
	if err != nil {
		s.t.Fatalf("dump: %v", err)
	}
}

// restore brings the tree back without faults; its memory has to prove itself.
func (s *scene) restore(lazy bool) {
	s.t.Helper()
	if _, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: s.dir, Lazy: lazy}); err != nil {
		s.t.Fatalf("restore: %v", err)
	}
	s.look()
	s.unharmed()
}

// gone wants no process of the tree to exist any more.
func (s *scene) gone() {
	s.t.Helper()
	for _, id := range s.tree {
		within(s.t, "the end of the tree", func() error {
			_, _ = unix.Wait4(id.pid, nil, unix.WNOHANG, nil)
			if task, err := proc.ReadTask(id.pid); err == nil {
				return fmt.Errorf("process %d (%s) of the tree is there, in state %c", id.pid, task.Comm, task.State)
			}
			return nil
		})
	}
}
