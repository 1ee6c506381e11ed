//go:build linux && (amd64 || arm64)

package guard

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// sleeper starts a process that does nothing; the end of the test ends it.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func alive(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	task, err := proc.ReadTask(cmd.Process.Pid)
	return err == nil && !task.Zombie()
}

// TestAnExpectedProcessIsKilledOnlyIfItIsTheOne fires guards that expect a
// process, by the pid that it really has.
func TestAnExpectedProcessIsKilledOnlyIfItIsTheOne(t *testing.T) {
	program, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	before := sleeper(t)
	waitForTick(t, before)
	for name, test := range map[string]struct {
		cmd     *exec.Cmd // nil: started after the guard
		program string
		lives   bool
	}{
		"the expected one":     {nil, program, false},
		"another program":      {nil, "/bin/sh", true},
		"older than the guard": {before, program, true},
	} {
		g, err := Start()
		if err != nil {
			t.Fatal(err)
		}
		cmd := test.cmd
		if cmd == nil {
			cmd = sleeper(t)
		}
		if err := g.Expect(cmd.Process.Pid, test.program); err != nil {
			t.Fatal(err)
		}
		if err := g.Fire(); err != nil {
			t.Fatal(err)
		}
		if got := alive(t, cmd); got != test.lives {
			t.Errorf("%s: it lives: %t, want %t", name, got, test.lives)
		}
	}
}

// waitForTick waits until the clock that counts start times has gone on, so that
// what starts from now on is younger.
func waitForTick(t *testing.T, old *exec.Cmd) {
	t.Helper()
	task, err := proc.ReadTask(old.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
			t.Fatal(err)
		}
		if uint64(now.Nano()/1e7) > task.StartTime+1 { // ticks of 10 ms
			return
		}
	}
}

func TestAnExpectedProcessThatNeverComes(t *testing.T) {
	g, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Expect(1<<22, "/bin/sh"); err != nil {
		t.Fatal(err)
	}
	if err := g.Fire(); err != nil {
		t.Fatal(err)
	}
}
