package testkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
	"stasis/internal/testkit"
)

// A proof that never fails proves nothing: each test here damages something of a
// running program, as a bad restore would, and wants to hear of it.

// memory opens a process's memory while it is stopped.
func memory(t *testing.T, pid int) *os.File {
	t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// pages of subject's largest mapping.
const (
	memMiB   = 40
	pageSize = 4096
)

// base finds the feature mem's pages: the largest mapping but the stacks of
// threads (8 MiB).
func base(t *testing.T, pid int) int64 {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var start, end int64
		if _, err := fmt.Sscanf(line, "%x-%x rw-p", &start, &end); err == nil && end-start >= memMiB<<20 {
			// A mapping made later may have been merged in below.
			return end - memMiB<<20
		}
	}
	t.Fatal("no mapping of the size of mem's")
	return 0
}

func TestMemNoticesDamage(t *testing.T) {
	t.Parallel()
	require.Root(t)
	for _, test := range []struct {
		name, want string
		damage     func(t *testing.T, mem *os.File, at int64)
	}{
		{"zero", "is zero", func(t *testing.T, mem *os.File, at int64) {
			t.Helper()
			write(t, mem, at, make([]byte, pageSize))
		}},
		{"swapped", "holds page", func(t *testing.T, mem *os.File, at int64) {
			t.Helper()
			a, b := read(t, mem, at), read(t, mem, at+pageSize)
			write(t, mem, at, b)
			write(t, mem, at+pageSize, a)
		}},
		{"one bit", "differs from byte", func(t *testing.T, mem *os.File, at int64) {
			t.Helper()
			page := read(t, mem, at)
			page[3000] ^= 4
			write(t, mem, at, page)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := testkit.StartSubject(t, fmt.Sprintf("mem:mib=%d,rate=0,watch=no", memMiB))
			s.Prove(t)
			test.damage(t, memory(t, s.PID()), base(t, s.PID())+17*pageSize)
			wantBad(t, s, test.want)
		})
	}
}

// A page from some milliseconds ago is what a wrong order of rounds would give.
func TestMemNoticesAnOldPage(t *testing.T) {
	require.Root(t)
	s := testkit.StartSubject(t, fmt.Sprintf("mem:mib=%d,rate=50,hot=1", memMiB))
	mem, at := memory(t, s.PID()), base(t, s.PID())
	old := read(t, mem, at)
	for deadline := time.Now().Add(10 * time.Second); ; {
		s.Work(t)
		stopped(t, s.PID(), func() {
			if slices.Equal(read(t, mem, at)[:16], old[:16]) {
				return // not written since
			}
			write(t, mem, at, old)
			old = nil
		})
		if old == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the page is never written")
		}
	}
	// The writer may have been in that very page, and writes it whole: then it is right again.
	for range 3 {
		if a := s.Check(t); !a.OK {
			if !strings.Contains(a.Text, "holds page") {
				t.Errorf("subject says %q", a.Text)
			}
			return
		}
	}
	t.Log("the page was written again before the check")
}

// stopped does something while a process stands still.
func stopped(t *testing.T, pid int, do func()) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGCONT)
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(testkit.Shape(pid), "stopped"); {
		if time.Now().After(deadline) {
			t.Fatal("it does not stop")
		}
	}
	do()
}

func read(t *testing.T, mem *os.File, at int64) []byte {
	t.Helper()
	page := make([]byte, pageSize)
	if _, err := mem.ReadAt(page, at); err != nil {
		t.Fatal(err)
	}
	return page
}

func write(t *testing.T, mem *os.File, at int64, page []byte) {
	t.Helper()
	if _, err := mem.WriteAt(page, at); err != nil {
		t.Fatal(err)
	}
}

func wantBad(t *testing.T, s *testkit.Subject, text string) {
	t.Helper()
	if a := s.Check(t); a.OK || !strings.Contains(a.Text, text) {
		t.Errorf("subject says ok=%v %q, should find something with %q", a.OK, a.Text, text)
	}
}

// child returns the n-th process below the root.
func child(t *testing.T, root, n int) int {
	t.Helper()
	tree := testkit.Tree(root)
	if len(tree) <= n {
		t.Fatalf("the tree has %d processes", len(tree))
	}
	return tree[n]
}

// damages do what a restore that forgets something would leave.
var damages = []struct {
	feature, want string
	damage        func(t *testing.T, s *testkit.Subject)
}{
	{"tree:mib=4,children=2", "tree: ", func(t *testing.T, s *testkit.Subject) {
		t.Helper()
		if err := unix.Kill(child(t, s.PID(), 2), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}},
	{"stopped", "the stopped child is in state", func(t *testing.T, s *testkit.Subject) {
		t.Helper()
		if err := unix.Kill(child(t, s.PID(), 1), unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}},
	{"pipe", "pipe holds 39999 bytes", func(t *testing.T, s *testkit.Subject) {
		t.Helper()
		// The first pipe that the program made.
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/3", s.PID()), os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}},
	{"filemap", "the file itself changed", func(t *testing.T, s *testkit.Subject) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(s.Dir, "mapped"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		write(t, f, 5*pageSize, make([]byte, pageSize))
	}},
	{"rlimits", "limit 7 is 776", func(t *testing.T, s *testkit.Subject) {
		t.Helper()
		if err := unix.Prlimit(s.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 776, Max: 1500}, nil); err != nil {
			t.Fatal(err)
		}
	}},
	{"affinity", "it may run on 2 CPUs", func(t *testing.T, s *testkit.Subject) {
		t.Helper()
		var two unix.CPUSet
		two.Set(0)
		two.Set(1)
		if err := unix.SchedSetaffinity(s.PID(), &two); err != nil {
			t.Fatal(err)
		}
	}},
	{"pending", "more than three", func(t *testing.T, s *testkit.Subject) {
		t.Helper()
		// A second one of the queued signals, where three were.
		if err := unix.Kill(s.PID(), unix.Signal(34+10)); err != nil {
			t.Fatal(err)
		}
	}},
	{"inotify", "creating: ", func(t *testing.T, s *testkit.Subject) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(s.Dir, "watched", "other"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}},
}

func TestFeaturesNoticeDamage(t *testing.T) {
	t.Parallel()
	require.Root(t)
	for _, test := range damages {
		t.Run(test.feature, func(t *testing.T) {
			t.Parallel()
			s := testkit.StartSubject(t, test.feature)
			s.Prove(t)
			test.damage(t, s)
			wantBad(t, s, test.want)
		})
	}
}

// A process that was killed leaves its pid free at once: nobody but this test's
// process waits for it.
func TestKillFreesPids(t *testing.T) {
	s := testkit.StartSubject(t, "tree:mib=1,children=3,grandchildren=2", "zombie")
	tree := testkit.Tree(s.PID())
	if len(tree) != 8 {
		t.Errorf("the tree has %d processes, should have 8:\n%s", len(tree), testkit.Shape(s.PID()))
	}
	begin := time.Now()
	testkit.Kill(t, s.PID())
	if left := testkit.Tree(s.PID()); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}
