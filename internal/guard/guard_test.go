//go:build linux && (amd64 || arm64)

package guard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const deadline = 20 * time.Second

// A controller stands for Stasis: this test once more, which starts a guard,
// gives it descriptor 3 to hold and the processes of its arguments to watch,
// and then does what it is told on standard input.
const controllerName = "guard-test-controller"

func TestMain(m *testing.M) {
	if os.Args[0] == controllerName {
		if err := control(); err != nil {
			fmt.Println(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func control() error {
	g, err := Start()
	if err != nil {
		return err
	}
	if err := g.Hold(3); err != nil {
		return err
	}
	_ = unix.Close(3)
	for _, arg := range os.Args[1:] {
		pid, err := strconv.Atoi(arg)
		if err == nil {
			err = g.Watch(pid)
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("ready", g.cmd.Process.Pid)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "release":
			err = g.Release()
		case "disarm":
			err = g.Disarm()
		case "fire":
			err = g.Fire()
		}
		fmt.Println("done", err)
	}
	return lines.Err()
}

// controller is a running one, and the other end of the pipe that the guard holds.
type controller struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	pipe *os.File
	pid  int // the guard's
}

func startController(t *testing.T, pids ...int) *controller {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	t.Cleanup(func() { read.Close() })
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{controllerName}, ExtraFiles: []*os.File{write}, Stderr: os.Stderr}
	for _, pid := range pids {
		cmd.Args = append(cmd.Args, strconv.Itoa(pid))
	}
	c := &controller{t: t, cmd: cmd, pipe: read}
	if c.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := fmt.Sscanf(c.line(), "ready %d", &c.pid); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *controller) line() string {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatal("the controller has ended")
	}
	return c.out.Text()
}

func (c *controller) ask(command string) {
	c.t.Helper()
	fmt.Fprintln(c.in, command)
	if got := c.line(); got != "done <nil>" {
		c.t.Fatalf("%s: %s", command, got)
	}
}

// holds reports whether the guard holds its copy of the pipe.
func (c *controller) holds() bool {
	poll := []unix.PollFd{{Fd: int32(c.pipe.Fd()), Events: unix.POLLIN}}
	n, _ := unix.Poll(poll, 0)
	return n == 0
}

func (c *controller) waitReleased() {
	c.t.Helper()
	if err := c.pipe.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.pipe.Read(make([]byte, 1)); err != io.EOF {
		c.t.Fatalf("the guard still holds its descriptor: %v", err)
	}
}

// victim is a process that does nothing, with a child that does nothing.
type victim struct {
	cmd   *exec.Cmd
	child int
	fds   [2]int // pidfds of both
}

func startVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{cmd: exec.Command("sh", "-c", "sleep 1000 & echo $!; wait")}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(out, &v.child); err != nil {
		t.Fatal(err)
	}
	for i, pid := range []int{v.cmd.Process.Pid, v.child} {
		if v.fds[i], err = unix.PidfdOpen(pid, 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, fd := range v.fds {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			_ = unix.Close(fd)
		}
		_ = v.cmd.Wait()
	})
	return v
}

// dead says which of the two have ended.
func (v *victim) dead() (n int) {
	for _, fd := range v.fds {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if ready, _ := unix.Poll(poll, 0); ready == 1 {
			n++
		}
	}
	return n
}

func TestStasisKilledMeansTheTreeIsKilled(t *testing.T) {
	v, w := startVictim(t), startVictim(t)
	other := startVictim(t)
	c := startController(t, v.cmd.Process.Pid, w.cmd.Process.Pid)
	if !c.holds() || v.dead()+w.dead() > 0 {
		t.Fatal("the guard acts while all is well")
	}
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.waitReleased()
	if n := v.dead() + w.dead(); n != 4 {
		t.Fatalf("%d of 4 processes were dead when the guard let go", n)
	}
	if other.dead() != 0 {
		t.Fatal("the guard killed somebody else")
	}
}

func TestDisarmHarmsNobody(t *testing.T) {
	v := startVictim(t)
	c := startController(t, v.cmd.Process.Pid)
	c.ask("disarm")
	c.waitReleased()
	if err := unix.Kill(c.pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Fatalf("the guard is still there: %v", err)
	}
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if v.dead() != 0 {
		t.Fatal("disarmed, the guard killed")
	}
}

func TestReleaseKeepsWatching(t *testing.T) {
	v := startVictim(t)
	c := startController(t, v.cmd.Process.Pid)
	c.ask("release")
	c.waitReleased()
	if v.dead() != 0 {
		t.Fatal("release killed")
	}
	c.in.Close() // the controller exits without a word to its guard
	v.wait(t)
}

func (v *victim) wait(t *testing.T) {
	t.Helper()
	for _, fd := range v.fds {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if err := retry(func() error { _, err := unix.Poll(poll, int(deadline.Milliseconds())); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if n := v.dead(); n != 2 {
		t.Fatalf("%d of 2 processes are dead", n)
	}
}

func TestFireWaitsForTheEnd(t *testing.T) {
	v := startVictim(t)
	c := startController(t, v.cmd.Process.Pid)
	c.ask("fire")
	if n := v.dead(); n != 2 {
		t.Fatalf("%d of 2 processes were dead when Fire returned", n)
	}
	c.waitReleased()
}

func TestTheGuardOutlivesSignals(t *testing.T) {
	v := startVictim(t)
	c := startController(t, v.cmd.Process.Pid)
	for _, s := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT} {
		if err := unix.Kill(c.pid, s); err != nil {
			t.Fatal(err)
		}
	}
	if sid, err := unix.Getsid(c.pid); err != nil || sid != c.pid {
		t.Errorf("the guard is in session %d: %v", sid, err)
	}
	c.ask("release")
	if v.dead() != 0 {
		t.Fatal("a signal made the guard kill")
	}
}

// A pid that is used again belongs to somebody else.
func TestAPidUsedAgainIsNotKilled(t *testing.T) {
	first := exec.Command("sleep", "1000")
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	pid := first.Process.Pid
	c := startController(t, pid)
	if err := errors.Join(first.Process.Kill(), ignoreExit(first.Wait())); err != nil {
		t.Fatal(err)
	}
	second := useAgain(t, pid)
	c.ask("fire")
	c.waitReleased()
	if second.dead() != 0 {
		t.Fatal("the guard killed a process that only has the pid of one that it watched")
	}
}

// useAgain starts a victim with that very pid.
func useAgain(t *testing.T, pid int) *victim {
	t.Helper()
	for range 200 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Skipf("requires a writable ns_last_pid: %v", err)
		}
		v := startVictim(t)
		if v.cmd.Process.Pid == pid {
			return v
		}
	}
	t.Fatalf("pid %d could not be had again in 200 tries", pid)
	return nil
}

func ignoreExit(err error) error {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil
	}
	return err
}

func TestWatchOfAProcessThatIsGone(t *testing.T) {
	g, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if err := g.Watch(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("Watch = %v", err)
	}
	if err := g.Hold(1 << 20); !errors.Is(err, unix.EBADF) {
		t.Errorf("Hold of no descriptor = %v", err)
	}
	if err := g.Disarm(); err != nil {
		t.Errorf("Disarm = %v", err)
	}
	for name, err := range map[string]error{"Disarm": g.Disarm(), "Fire": g.Fire(), "Release": g.Release(), "Hold": g.Hold(0)} {
		if !errors.Is(err, ErrEnded) {
			t.Errorf("%s after the end = %v", name, err)
		}
	}
}

func TestAGuardThatDiedIsNoticed(t *testing.T) {
	g, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := g.Watch(os.Getpid()); !errors.Is(err, ErrEnded) {
		t.Errorf("Watch = %v", err)
	}
	if err := g.Disarm(); !errors.Is(err, ErrEnded) {
		t.Errorf("Disarm = %v", err)
	}
}

func TestTheGuardIsSmall(t *testing.T) {
	g, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Disarm()
	if err := g.Release(); err != nil { // it is up
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kb int
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kb); n == 1 {
			t.Logf("resident: %d KiB", kb)
			if kb > 32<<10 {
				t.Errorf("the guard has %d KiB", kb)
			}
		}
	}
}
