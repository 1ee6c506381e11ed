package stasis

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/require"
)

// lockerEnv makes this test program one that locks the process that it names.
const lockerEnv = "STASIS_TEST_LOCKER"

// TestLocker is no test but what the others run once more: it says whether it
// has got the lock, and holds it until its input ends.
func TestLocker(t *testing.T) {
	pid, err := strconv.Atoi(os.Getenv(lockerEnv))
	if err != nil {
		return
	}
	task, err := proc.ReadTask(pid)
	if err != nil {
		t.Fatal(err)
	}
	lock, kind, err := lockTree(task)
	fmt.Fprintf(os.Stdout, "\nlock: %v, %v\n", errors.Is(kind, ErrBusy), err)
	if err == nil {
		_, _ = io.Copy(io.Discard, os.Stdin)
		lock.release()
	}
}

// startLocker runs TestLocker with namespaces of its own, and returns what it says.
func startLocker(t *testing.T, pid int, namespaces uintptr) (cmd *exec.Cmd, said string) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe", "-test.run=^TestLocker$")
	cmd.Env = append(os.Environ(), fmt.Sprint(lockerEnv, "=", pid))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var text strings.Builder
	for b := make([]byte, 1); ; {
		if _, err := out.Read(b); err != nil {
			t.Fatalf("the other one has ended: %q", text.String())
		}
		text.Write(b)
		if line := text.String(); b[0] == '\n' {
			if _, said, found := strings.Cut(line, "lock: "); found {
				return cmd, strings.TrimSpace(said)
			}
		}
	}
}

// sleeper is a process to lock.
func sleeper(t *testing.T) *proc.Task {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	task, err := proc.ReadTask(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// mustLock locks a tree that nobody else has locked.
func mustLock(t *testing.T, root *proc.Task) *treeLock {
	t.Helper()
	lock, _, err := lockTree(root)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

// Two dumps of one tree: the second is told by whom it is dumped.
func TestTreeIsLockedOnce(t *testing.T) {
	root := sleeper(t)
	lock := mustLock(t, root)
	_, kind, err := lockTree(root)
	if !errors.Is(kind, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("dumped already by process %d (", os.Getpid())) {
		t.Errorf("%v, %v", kind, err)
	}
	mustLock(t, sleeper(t)).release() // another tree
	lock.release()
	mustLock(t, root).release()
}

// Namespaces of its own do not hide a dump from another: Stasis has looked for
// the process in the same /proc.
func TestTreeLockAcrossNamespaces(t *testing.T) {
	require.Root(t)
	root := sleeper(t)
	_, said := startLocker(t, root.PID, unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS)
	if said != "false, <nil>" {
		t.Fatal("the lock in other namespaces: ", said)
	}
	if _, kind, err := lockTree(root); !errors.Is(kind, ErrBusy) {
		t.Errorf("locked there, and here: %v", err)
	}
	mine := sleeper(t)
	defer mustLock(t, mine).release()
	if _, said := startLocker(t, mine.PID, unix.CLONE_NEWNET|unix.CLONE_NEWNS); !strings.HasPrefix(said, "true, ") {
		t.Error("locked here, and there: ", said)
	}
}

// A Stasis that is killed leaves no lock.
func TestTreeLockOfAKilledOne(t *testing.T) {
	require.Root(t) // else a sibling may not be traced where Yama is
	root := sleeper(t)
	cmd, said := startLocker(t, root.PID, 0)
	if said != "false, <nil>" {
		t.Fatal(said)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	mustLock(t, root).release()
}

// A user who may not trace a process cannot lock it, and so keep others from
// dumping it.
func TestTreeLockOfAStranger(t *testing.T) {
	require.Root(t)
	flock := require.Program(t, "flock")
	root := sleeper(t)
	squat := func(uid uint32) error {
		cmd := exec.Command(flock, "--nonblock", fmt.Sprintf("/proc/%d/mem", root.PID), "true")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		t.Logf("user %d: %s%v", uid, out, err)
		return err
	}
	if err := squat(0); err != nil {
		t.Fatal("root cannot lock it either: ", err)
	}
	if squat(65534) == nil {
		t.Error("a stranger can lock it")
	}
}

// A process that has ended is nobody's to lock.
func TestTreeLockOfNobody(t *testing.T) {
	const never = 1 << 22 // beyond pid_max
	if _, kind, err := lockTree(&proc.Task{PID: never}); !errors.Is(kind, ErrProcess) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v, %v", kind, err)
	}
}
