package testkit

import (
	"encoding/binary"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// startWithin is how long a program may take until it is ready, on a small
// machine with other work.
const startWithin = 60 * time.Second

// command is a program to start.
type command struct {
	path string
	args []string
	env  []string // beside PATH, HOME and LC_ALL
	dir  string
	// unshare has namespaces that the program is put into (CLONE_NEW…).
	unshare uintptr
}

// start runs a program in a session of its own and returns its pid. What it
// prints goes to the file "output" in its folder, which is shown when the test
// fails. The end of the test ends its tree.
//
// CRIU refuses to restore an open file that has grown since the dump, so a
// program that prints after it is ready has to print elsewhere.
func start(t T, c command) int {
	t.Helper()
	output := filepath.Join(c.dir, "output")
	log, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		t.Fatalf("start %s: %v", c.path, err)
	}
	defer log.Close()
	cmd := exec.Command(c.path, c.args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, log, log
	cmd.Env = append([]string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + c.dir, "LC_ALL=C.UTF-8"}, c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: c.unshare}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", c.path, err)
	}
	pid := cmd.Process.Pid
	Watch(pid) // which waits for it
	if err := cmd.Process.Release(); err != nil {
		t.Fatalf("start %s: %v", c.path, err)
	}
	endWithTest(t, pid, output)
	return pid
}

// endWithTest kills the tree when the test ends, if it is still there, and shows
// what it printed if the test failed.
func endWithTest(t T, pid int, output string) {
	t.Helper()
	t.Cleanup(func() {
		// The number may belong to somebody else by now. Ours is our child,
		// since Watch made this process the heir of orphans.
		if s, err := readStat(pid); err == nil && s.ppid == os.Getpid() {
			Kill(t, pid)
		}
		if printed, err := os.ReadFile(output); t.Failed() && err == nil && len(printed) > 0 {
			t.Logf("%s:\n%.4000s", output, printed)
		}
	})
}

// folder makes a folder for one program. Its name is short: the path of a Unix
// socket has to fit in 108 bytes. Any user may work in it.
func folder(t T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "stasis-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatalf("folder for a program: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var addresses atomic.Uint32

// address returns a loopback address that only one program of this process has
// (all of 127.0.0.0/8 is the machine itself). With an address of its own, a
// program keeps its port while it is dead.
func address() string {
	var ip [4]byte
	// 128 to 255 for the program, then 16 bits of this process.
	binary.BigEndian.PutUint32(ip[:], 127<<24|(128+addresses.Add(1)%128)<<16|uint32(os.Getpid()&0xffff))
	return netip.AddrFrom4(ip).String()
}

// until calls try until it succeeds, for as long as a start may take, and fails
// the test with its last error.
func until(t T, what string, try func() error) {
	t.Helper()
	wait(t, startWithin, what, try)
}

func wait(t T, limit time.Duration, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
