package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// running are the points at which the tree runs.
var running = []string{"prepare", "arm", "copy", pointCopying, "write", "publish"}

// TestTargetEnds: the program is killed in the middle. There is a message, or
// a checkpoint if its state was complete; nothing hangs.
func TestTargetEnds(t *testing.T) {
	for _, point := range dumpSteps[:8] {
		t.Run(point, func(t *testing.T) {
			s := newScene(t)
			w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterRun, Wait: []string{point}})
			w.reach(point)
			for _, id := range s.tree {
				_ = unix.Kill(id.pid, unix.SIGKILL) // some end with their parent
			}
			if !strings.Contains("freeze state", point) { // then CRIU holds it
				s.gone()
			}
			w.goOn()
			o := w.end()
			s.gone()
			s.nothingLeft(w)
			s.swept(w)
			exists := s.checkpoint()
			if exists != (o.Err == "") {
				t.Errorf("a checkpoint exists: %t, and the dump says %q", exists, o.Err)
			}
			if late := point == "state" || point == "write" || point == "publish"; exists != late {
				t.Errorf("a checkpoint exists: %t, should be %t: %s", exists, late, o.Err)
			}
			if o.Err != "" && !strings.Contains(o.Err, fmt.Sprintf("process %d", s.p.PID())) {
				t.Errorf("the message does not name the process: %s", o.Err)
			}
			if exists {
				s.restore(false)
			}
		})
	}
}

// shape is a program that changes its shape when it is told to by a signal:
// SIGUSR1 makes it another program, SIGUSR2 makes it fork.
const shape = `
trap 'exec sleep 1000' USR1
trap 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 1000 & done; : > "$1/forked"' USR2
: > "$1/ready"
while :; do sleep 1000 & wait $!; done
`

// startShape starts one. It is the child of this process.
func startShape(t *testing.T) (pid int, dir string) {
	t.Helper()
	require.Root(t)
	require.CRIU(t)
	dir = t.TempDir()
	cmd := exec.Command("/bin/sh", "-c", shape, "shape", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid = cmd.Process.Pid
	testkit.Watch(pid)
	t.Cleanup(func() { testkit.Kill(t, pid) })
	within(t, "the program is ready", func() error { _, err := os.Stat(filepath.Join(dir, "ready")); return err })
	within(t, "its child", func() error {
		children, err := proc.Children(pid)
		if err == nil && len(children) == 0 {
			return errors.New("there is none")
		}
		return err
	})
	return pid, dir
}

// TestTargetChanges: it becomes another program, or many, between the steps of
// a dump. The checkpoint has what it became.
func TestTargetChanges(t *testing.T) {
	for _, change := range []struct {
		name   string
		signal unix.Signal
		done   func(pid int) error
	}{
		{"exec", unix.SIGUSR1, func(pid int) error {
			task, err := proc.ReadTask(pid)
			if err == nil && task.Comm != "sleep" {
				return fmt.Errorf("it is still a %s", task.Comm)
			}
			return err
		}},
		{"fork", unix.SIGUSR2, func(pid int) error {
			tree, err := proc.Tree(pid)
			if err == nil && len(tree) < 1+20+2 {
				return fmt.Errorf("it has %d processes", len(tree))
			}
			for _, task := range tree[min(1, len(tree)):] {
				if task.Comm != "sleep" {
					return fmt.Errorf("process %d is %s", task.PID, task.Comm)
				}
			}
			return err
		}},
	} {
		for _, point := range running[:4] {
			t.Run(change.name+"/"+point, func(t *testing.T) {
				pid, _ := startShape(t)
				dir := filepath.Join(t.TempDir(), "checkpoint")
				w := start(t, plan{PID: pid, Dir: dir, After: stasis.AfterKill, Wait: []string{point}})
				w.reach(point)
				if err := unix.Kill(pid, change.signal); err != nil {
					t.Fatal(err)
				}
				within(t, change.name, func() error { return change.done(pid) })
				tree := testkit.Shape(pid)
				testkit.Watch(pid)
				w.goOn()
				if o := w.end(); o.Err != "" {
					t.Fatalf("the dump failed: %s", o.Err)
				}
				within(t, "its end", func() error {
					if _, err := proc.ReadTask(pid); err == nil {
						return fmt.Errorf("process %d is there", pid)
					}
					return nil
				})
				if _, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: dir}); err != nil {
					t.Fatal(err)
				}
				testkit.Watch(pid)
				if now := testkit.Shape(pid); !t.Failed() && now != tree {
					t.Errorf("the restored tree is\n%sand was\n%s", now, tree)
				}
			})
		}
	}
}

// TestTracedTarget: a debugger comes in the middle. The dump names it; the
// program and its debugger go on.
func TestTracedTarget(t *testing.T) {
	s := newScene(t)
	for _, point := range []string{"prepare", "arm", "copy"} {
		t.Run(point, func(t *testing.T) {
			s := s.in(t)
			s.newDir()
			w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterKill, Wait: []string{point}})
			w.reach(point)
			runtime.LockOSThread() // the debugger is a thread
			defer runtime.UnlockOSThread()
			if err := ptrace(unix.PTRACE_SEIZE, s.p.PID()); err != nil {
				t.Fatal(err)
			}
			w.goOn()
			o := w.end()
			if err := ptrace(unix.PTRACE_INTERRUPT, s.p.PID()); err != nil {
				t.Errorf("the debugger has lost the program: %v", err)
			}
			if _, err := unix.Wait4(s.p.PID(), nil, unix.WALL, nil); err != nil {
				t.Errorf("the debugger has lost the program: %v", err)
			}
			if err := ptrace(unix.PTRACE_DETACH, s.p.PID()); err != nil {
				t.Errorf("the debugger has lost the program: %v", err)
			}
			if o.Kind != "process" || !strings.Contains(o.Err, fmt.Sprintf("traced by process %d", unix.Gettid())) {
				t.Errorf("the message does not name the debugger: %s", o.Err)
			}
			s.nothingLeft(w)
			s.unharmed()
			if s.checkpoint() {
				t.Error("there is a checkpoint")
			}
		})
	}
}

func ptrace(request, pid int) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// TestFinalBufferOverflows: what does not fit is written in the freeze.
func TestFinalBufferOverflows(t *testing.T) {
	s := newScene(t)
	w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterKill, FinalBuffer: 1})
	if o := w.end(); o.Err != "" {
		t.Fatal(o.Err)
	}
	s.gone()
	if !s.checkpoint() {
		t.Fatal("there is no checkpoint")
	}
	s.restore(false)
}

// TestTwoDumpsAtOnce: the second is refused, and harms nothing.
func TestTwoDumpsAtOnce(t *testing.T) {
	s := newScene(t)
	w := start(t, plan{PID: s.p.PID(), Dir: s.dir, After: stasis.AfterRun, Wait: []string{"copy"}})
	w.reach("copy")
	second := start(t, plan{PID: s.p.PID(), Dir: s.dir + "-2", After: stasis.AfterKill})
	if o := second.end(); o.Kind != "busy" || !strings.Contains(o.Err, "being dumped already") {
		t.Errorf("the second dump: an error of kind %q: %s", o.Kind, o.Err)
	}
	if _, err := os.Stat(s.dir + "-2"); err == nil {
		t.Error("the second dump has made its folder")
	}
	other := newScene(t)
	third := start(t, plan{PID: other.p.PID(), Dir: s.dir, After: stasis.AfterKill})
	if o := third.end(); o.Err == "" || !strings.Contains(o.Err, s.dir) {
		t.Errorf("another program's dump to the same folder: an error of kind %q: %s", o.Kind, o.Err)
	}
	other.unharmed()
	w.goOn()
	if o := w.end(); o.Err != "" {
		t.Fatalf("the first dump: %s", o.Err)
	}
	s.unharmed()
	if !s.checkpoint() {
		t.Error("there is no checkpoint")
	}
}
