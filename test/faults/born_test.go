package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/proc"
	"stasis/internal/require"
)

// CRIU tells Stasis of the root of a tree only when all of the tree is restored.
// In these tests Stasis gets no time on a CPU from the root's birth on, and then
// is killed: what it has not read yet, such as the first userfaultfd, it never
// knew.

// TestStasisKilledBeforeItKnowsTheRoot: the root has taken over the program and
// the name that it had, and nobody but CRIU knows that it is not whole.
func TestStasisKilledBeforeItKnowsTheRoot(t *testing.T) {
	s := newSceneOf(t, "churn:threads=2,rate=3000", "mem:mib=4,rate=30,writers=2,watch=no")
	size := len(s.tree)
	s.dump(stasis.AfterKill)
	s.gone()
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lazy=%t", lazy), func(t *testing.T) {
			s := s.in(t)
			w := start(t, plan{Restore: true, Dir: s.dir, Lazy: lazy, Wait: []string{"restore"}})
			own := programOf(t, w.cmd.Process.Pid)
			w.reach("restore")
			w.goOn()
			within(t, "the birth of the root", func() error { _, err := proc.ReadTask(s.p.PID()); return err })
			w.stop()
			w.note() // CRIU is there
			criu := w.criu()
			eventually(func() bool {
				root := programOf(t, s.p.PID())
				return root != programOf(t, criu) && root != own
			})
			w.kill()
			s.nothingLeft(w)
			if s.wholeOrGone(size) { // the machine was too slow to stop Stasis in time
				s.provesItself()
			}
		})
	}
	if !t.Failed() {
		s.restore(false)
	}
}

// TestStasisKilledBeforeItKnowsTheRootOfANamespace: the root gets a pid that
// nobody could foretell.
func TestStasisKilledBeforeItKnowsTheRootOfANamespace(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	cmd := exec.Command("sleep", "100000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	dir := t.TempDir() + "/checkpoint"
	if _, err := stasis.Dump(context(), stasis.DumpOptions{PID: cmd.Process.Pid, Dir: dir, After: stasis.AfterKill}); err != nil {
		t.Fatalf("dump: %v", err)
	}
	<-ended
	w := start(t, plan{Restore: true, Dir: dir, Wait: []string{"restore"}})
	ours := namespaceOf(w.cmd.Process.Pid)
	w.reach("restore")
	w.goOn()
	var root identity
	within(t, "the birth of the root", func() error {
		children, err := proc.Children(w.cmd.Process.Pid)
		for _, pid := range children {
			if in := namespaceOf(pid); in != "" && in != ours {
				task, err := proc.ReadTask(pid)
				root = identity{pid, task.StartTime}
				return err
			}
		}
		return fmt.Errorf("only %v: %w", children, err)
	})
	w.stop()
	w.kill()
	within(t, "the end of the root", func() error {
		if task, err := proc.ReadTask(root.pid); err == nil && task.StartTime == root.start && !task.Zombie() {
			return fmt.Errorf("process %d (%s) is there, in state %c", root.pid, task.Comm, task.State)
		}
		return nil
	})
}

// TestADeletedFileThatAKilledRestoreHasLeft: CRIU gives a deleted file a name for
// the moment in which it opens it.
func TestADeletedFileThatAKilledRestoreHasLeft(t *testing.T) {
	s := newSceneOf(t, "deleted")
	s.dump(stasis.AfterKill)
	s.gone()
	left := filepath.Join(s.p.Dir, "deleted.cr.1.ghost") // the first that a checkpoint has
	if err := os.WriteFile(left, []byte("a part"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.restore(false)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", left, err)
	}
}

// stop takes the worker off the CPU until it is killed.
func (w *worker) stop() {
	w.t.Helper()
	if err := unix.Kill(w.cmd.Process.Pid, unix.SIGSTOP); err != nil {
		w.t.Fatal(err)
	}
}

// ended says whether the worker has nothing more to do: it waits for the test's leave.
func (w *worker) ended() bool {
	raw, err := w.out.SyscallConn()
	if err != nil {
		return true
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) })
	return n > 0
}

// eventually waits for what may not come: the test goes on then, and shows less.
func eventually(there func() bool) {
	for deadline := time.Now().Add(patience / 4); !there() && time.Now().Before(deadline); {
		<-time.After(2 * time.Millisecond)
	}
}

// programOf is the path of what a process runs; "" when it is gone.
func programOf(t *testing.T, pid int) string {
	t.Helper()
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return path
}

func namespaceOf(pid int) string {
	link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return link
}
