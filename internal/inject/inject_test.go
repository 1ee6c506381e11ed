package inject

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/subject"
	"stasis/internal/uffd"
)

func TestMain(m *testing.M) {
	subject.Main(m, map[string]subject.Role{"busy": busy, "filtered tracer": filteredTracer})
}

// busy computes and sleeps in several threads, and says how often each came
// round: a thread that was put back wrongly would crash or stand still.
func busy(say func(string, ...any), hear func() (string, bool)) {
	var sleeps, turns atomic.Int64
	for range 4 {
		go func() {
			for {
				<-time.After(100 * time.Microsecond)
				sleeps.Add(1)
			}
		}()
	}
	go func() {
		for {
			turns.Add(1)
		}
	}()
	say("ready")
	for {
		if _, ok := hear(); !ok {
			return
		}
		say("%d %d", sleeps.Load(), turns.Load())
	}
}

func TestTheTargetRunsOn(t *testing.T) {
	s := subject.Start(t, "busy")
	s.Hear()
	for range 200 {
		fd, err := Userfaultfd(s.PID, unix.O_CLOEXEC|unix.O_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := uffd.FromFD(fd).API(uffd.FeatureWPAsync); err != nil {
			t.Fatalf("what came back is no userfaultfd: %v", err)
		}
		unix.Close(fd)
	}
	var sleeps, turns, laterSleeps, laterTurns int64
	s.Scan(s.Ask("count"), &sleeps, &turns)
	for deadline := time.Now().Add(10 * time.Second); laterSleeps <= sleeps || laterTurns <= turns; {
		if time.Now().After(deadline) {
			t.Fatalf("the threads stand still: %d sleeps, %d turns", laterSleeps, laterTurns)
		}
		s.Scan(s.Ask("count"), &laterSleeps, &laterTurns)
	}
	if held := userfaultfdsOf(t, s.PID); held != 0 {
		t.Errorf("the target holds %d userfaultfds", held)
	}
	if task, err := proc.ReadTask(s.PID); err != nil || task.TracerPID != 0 {
		t.Errorf("the target is still traced: %+v %v", task, err)
	}
}

func userfaultfdsOf(t *testing.T, pid int) (n int) {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, _ := os.Readlink(filepath.Join(dir, fd.Name())); strings.Contains(link, "userfaultfd") {
			n++
		}
	}
	return n
}

func TestASleepIsNotCutShort(t *testing.T) {
	began := time.Now()
	cmd := exec.Command("sleep", "0.5")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitUntilAsleep(t, cmd.Process.Pid)
	fd, err := Userfaultfd(cmd.Process.Pid, unix.O_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if err := cmd.Wait(); err != nil {
		t.Errorf("sleep ended with %v", err)
	}
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("sleep took only %v", took)
	}
}

func waitUntilAsleep(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		raw, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "syscall"))
		if strings.HasPrefix(string(raw), "230 ") { // clock_nanosleep
			return
		}
	}
	t.Fatal("sleep does not sleep")
}

func TestAStoppedTargetStaysStopped(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	waitUntilAsleep(t, cmd.Process.Pid)
	cmd.Process.Signal(syscall.SIGSTOP)
	waitForState(t, cmd.Process.Pid, 'T')
	fd, err := Userfaultfd(cmd.Process.Pid, unix.O_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	waitForState(t, cmd.Process.Pid, 'T')
}

func waitForState(t *testing.T, pid int, want byte) {
	t.Helper()
	var got byte
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		task, err := proc.ReadTask(pid)
		if err != nil {
			t.Fatal(err)
		}
		if got = task.State; got == want {
			return
		}
	}
	t.Fatalf("process %d is in state %c, want %c", pid, got, want)
}

func TestATracedTargetIsRefused(t *testing.T) {
	s := subject.Start(t, "busy")
	s.Hear()
	traced := make(chan error)
	release := make(chan struct{})
	go func() {
		tr, err := lockedStop(s.PID)
		traced <- err
		<-release
		if err == nil {
			tr.release()
		}
		traced <- nil
	}()
	if err := <-traced; err != nil {
		t.Fatal(err)
	}
	if _, err := Userfaultfd(s.PID, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("a second tracer got %v, want %v", err, unix.EPERM)
	}
	close(release)
	<-traced
}

func TestATargetThatIsGone(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := Userfaultfd(cmd.Process.Pid, 0); !errors.Is(err, proc.ErrGone) {
		t.Errorf("got %v", err)
	}
}
