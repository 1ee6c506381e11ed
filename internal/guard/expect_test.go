//go:build linux && (amd64 || arm64)

package guard

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// sleeper starts a process that does nothing, with a file open; the end of the
// test ends it.
func sleeper(t *testing.T, open *os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{open}
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

// opened opens a file of a new folder, for writing if it is not there yet.
func opened(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// TestExpectedProcessesAreKilledOnlyIfTheyAreTheOnes fires guards that expect
// processes which have a log open.
func TestExpectedProcessesAreKilledOnlyIfTheyAreTheOnes(t *testing.T) {
	log, other := filepath.Join(t.TempDir(), "restore.log"), filepath.Join(t.TempDir(), "restore.log")
	writes := opened(t, log, os.O_CREATE|os.O_WRONLY)
	before := sleeper(t, writes)
	waitForTick(t, before)
	for name, test := range map[string]struct {
		cmd   *exec.Cmd // nil: started after the guard
		open  *os.File
		lives bool
	}{
		"the expected one":            {nil, writes, false},
		"one that reads":              {nil, opened(t, log, os.O_RDONLY), true},
		"one with a file like it":     {nil, opened(t, other, os.O_CREATE|os.O_WRONLY), true},
		"one older than the guard":    {before, writes, true},
		"one with another descriptor": {nil, opened(t, os.DevNull, os.O_WRONLY), true},
	} {
		g, err := Start()
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Expect(log); err != nil {
			t.Fatal(err)
		}
		cmd := test.cmd
		if cmd == nil {
			cmd = sleeper(t, test.open)
		}
		if err := g.Fire(); err != nil {
			t.Fatal(err)
		}
		if got := alive(t, cmd); got != test.lives {
			t.Errorf("%s: it lives: %t, want %t", name, got, test.lives)
		}
	}
}

// TestAnExpectedProcessIsKnownByAFileThatIsDeleted: a work folder can be gone
// before the guard fires.
func TestAnExpectedProcessIsKnownByAFileThatIsDeleted(t *testing.T) {
	log := filepath.Join(t.TempDir(), "restore.log")
	writes := opened(t, log, os.O_CREATE|os.O_WRONLY)
	g, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Expect(log); err != nil {
		t.Fatal(err)
	}
	cmd := sleeper(t, writes)
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	if err := g.Fire(); err != nil {
		t.Fatal(err)
	}
	if alive(t, cmd) {
		t.Error("it lives")
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

func TestAFileToExpectByThatIsNotThere(t *testing.T) {
	g, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Expect(filepath.Join(t.TempDir(), "restore.log")); err == nil {
		t.Error("no error")
	}
	if err := g.Fire(); err != nil {
		t.Fatal(err)
	}
}
