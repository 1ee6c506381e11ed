package trust

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
)

const nobody = 65534

// start runs a program as a user, with the files that it gets as descriptors 3, 4, …
func start(t *testing.T, files ...*os.File) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.Dir, cmd.Env, cmd.ExtraFiles = "/", []string{"LC_ALL=C"}, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitAsleep(t, cmd.Process.Pid)
	return cmd.Process.Pid
}

// waitAsleep waits until sleep(1) does what it is for: before that it maps and
// unmaps files.
func waitAsleep(t *testing.T, pid int) {
	t.Helper()
	call := fmt.Sprintf("%d ", unix.SYS_CLOCK_NANOSLEEP)
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		now, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		if err == nil && strings.HasPrefix(string(now), call) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sleep does not sleep: %q, %v", now, err)
		}
	}
}

// A tree with something that a restore would make anew at a path is not a user's to dump.
func TestTree(t *testing.T) {
	require.Root(t)
	u := User{nobody, nobody}
	dir := t.TempDir()
	if err := Tree(start(t), u); err != nil {
		t.Errorf("a plain process: %v", err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	gone, err := os.Create(filepath.Join(dir, "gone"))
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	if err := os.Remove(gone.Name()); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	for _, test := range []struct {
		what string
		file *os.File
		says string
	}{
		{"named pipe", pipe, "a named pipe"}, {"deleted file", gone, "a deleted file"}, {"socket", socket, "a Unix socket at a path"}, {"pipe", reader, ""},
	} {
		err := Tree(start(t, test.file), u)
		if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	if err := Tree(os.Getpid(), u); !errors.As(err, new(*ProcessError)) {
		t.Errorf("root's: %v", err)
	}
}

// What a process has open has to be what its user could have opened.
func TestRestored(t *testing.T) {
	require.Root(t)
	u := User{nobody, nobody}
	dir := t.TempDir()
	open := func(name string, mode os.FileMode, uid, gid, flags int) *os.File {
		path := filepath.Join(dir, name)
		for _, err := range []error{os.WriteFile(path, []byte("x"), mode), os.Chmod(path, mode), os.Chown(path, uid, gid)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		file, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		return file
	}
	for _, test := range []struct {
		what string
		file *os.File
		good bool
	}{
		{"root's, secret", open("a", 0o600, 0, 0, os.O_RDONLY), false},
		{"root's, readable", open("b", 0o644, 0, 0, os.O_RDONLY), true},
		{"root's, readable, for writing", open("c", 0o644, 0, 0, os.O_RDWR), false},
		{"root's, writable, for reading", open("d", 0o622, 0, 0, os.O_RDONLY), false},
		{"root's, for his group", open("e", 0o640, 0, nobody, os.O_RDONLY), true},
		{"root's, for another group", open("f", 0o640, 0, 1, os.O_RDONLY), false},
		{"root's, not for his group", open("g", 0o604, 0, nobody, os.O_RDONLY), false},
		{"his own, even without mode", open("h", 0, nobody, 0, os.O_RDWR), true},
	} {
		err := Restored([]int{start(t, test.file)}, u)
		if (err == nil) != test.good {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	if err := Restored([]int{start(t)}, User{nobody, 0}); err == nil {
		t.Error("a process of another group")
	}
}

func TestFolder(t *testing.T) {
	require.Root(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Folder(dir); err != nil {
		t.Errorf("root's alone: %v", err)
	}
	// Links that are root's may be on the way, and a ring of them is an error.
	link := filepath.Join(filepath.Dir(dir), "link")
	if err := os.Symlink("b/../b", link); err != nil {
		t.Fatal(err)
	}
	if err := Folder(link); err != nil {
		t.Errorf("by a link of root's: %v", err)
	}
	ring := filepath.Join(filepath.Dir(dir), "ring")
	if err := os.Symlink("ring", ring); err != nil {
		t.Fatal(err)
	}
	if err := Folder(ring); err == nil {
		t.Error("a ring of links: no error")
	}
	for _, bad := range []string{"relative", dir + "/file", dir + "/nothing"} {
		if err := Folder(bad); err == nil || errors.As(err, new(*Error)) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := os.Chmod(filepath.Dir(dir), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := Folder(dir); err != nil {
		t.Errorf("below a folder such as /tmp: %v", err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := Folder(dir); !errors.As(err, new(*Error)) {
		t.Errorf("below a folder that all can write: %v", err)
	}
}
