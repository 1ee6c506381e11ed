package inject

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// TestAProcessThatExecutesPrograms works on a process that is another program
// each millisecond, with its vdso at another address each time.
func TestAProcessThatExecutesPrograms(t *testing.T) {
	script := filepath.Join(t.TempDir(), "again")
	if err := os.WriteFile(script, []byte("exec /bin/sh "+script+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	target := exec.Command("/bin/sh", script)
	target.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := target.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		target.Process.Kill()
		target.Wait()
	})
	made := 0
	for range 100 {
		fd, err := Userfaultfd(target.Process.Pid, unix.O_CLOEXEC)
		if err == nil {
			made++
			unix.Close(fd)
		}
		if task, err := proc.ReadTask(target.Process.Pid); err != nil || task.Zombie() {
			t.Fatalf("the process was hurt by userfaultfd %d: %v", made, err)
		}
	}
	if made == 0 {
		t.Error("none of 100 userfaultfds could be made")
	}
}
