package proc

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startGroup runs a shell command in a process group of its own.
func startGroup(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
	})
	return cmd
}

// ended waits until a process has ended, and leaves it for its parent to collect.
func ended(t *testing.T, pid int) {
	t.Helper()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

// What nobody has is free, and who has a number is found whatever he has it as.
func TestHolders(t *testing.T) {
	zombie := startGroup(t, "exit 0")
	ended(t, zombie.Process.Pid)
	leader := startGroup(t, "sleep 1000 & exit 0")
	if err := leader.Wait(); err != nil {
		t.Fatal(err)
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	tids := make(chan int)
	for range 2 { // one may get the first thread, whose number is the process'
		go func() {
			runtime.LockOSThread()
			tids <- unix.Gettid()
			select {}
		}()
	}
	thread, other := <-tids, <-tids
	if thread == os.Getpid() {
		thread = other
	}

	for what, c := range map[string]struct {
		number int
		use    Use
		dying  bool
	}{
		"this process":              {os.Getpid(), UseProcess, false},
		"a thread":                  {thread, UseThread, false},
		"a zombie":                  {zombie.Process.Pid, UseProcess, true},
		"a group without a leader":  {leader.Process.Pid, UseGroup, false},
		"a process that is no more": {gone.Process.Pid, "", false},
	} {
		holders, err := Holders([]int{c.number})
		if err != nil {
			t.Fatal(err)
		}
		if c.use == "" {
			// The kernel may need a moment, in which it says that it is not done with it.
			for end := time.Now().Add(time.Minute); len(holders) > 0 && time.Now().Before(end); runtime.Gosched() {
				if holders[0].Use != UseEnded || !holders[0].Dying {
					break // somebody new has it
				}
				if holders, err = Holders([]int{c.number}); err != nil {
					t.Fatal(err)
				}
			}
			if len(holders) > 0 && holders[0].Use == UseEnded {
				t.Errorf("%s: %+v", what, holders)
			}
			continue
		}
		if len(holders) != 1 || holders[0].Use != c.use || holders[0].Dying != c.dying {
			t.Errorf("%s: %+v, want %s, dying %t", what, holders, c.use, c.dying)
		}
	}
}

// What the kernel holds is what /proc shows, and it may be more.
func TestHeld(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	taken, err := held(append(all, 1<<22+1)) // which is beyond any pid
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(taken, 1<<22+1) || !slices.Contains(taken, os.Getpid()) || !slices.Contains(taken, 1) {
		t.Errorf("held of %v: %v", all, taken)
	}
}
