package stasis

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
)

// ended is a child of this process that has ended and waits to be collected.
func ended(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() { _ = cmd.Wait() })
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			return pid
		}
		if !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
}

func isThere(pid int) bool {
	return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == nil
}

// A root that CRIU has made is collected, and nobody else.
func TestKilledRootIsCollected(t *testing.T) {
	pid, other := ended(t), ended(t)
	root := findKilledRoot(pid, &criu.Error{Lines: []string{fmt.Sprintf("Unable to create a thread %d: -17", pid+1)}})
	defer root.close()
	root.collect()
	if isThere(pid) {
		t.Error("it still keeps its number")
	}
	root.collect() // there is nothing left to do
	if !isThere(other) {
		t.Error("another child was collected")
	}
}

// Who has the pid that CRIU could not get is somebody else's child.
func TestOthersAreNotCollected(t *testing.T) {
	pid := ended(t)
	root := findKilledRoot(pid, &criu.Error{Lines: []string{fmt.Sprintf("Can't fork for %d: File exists", pid)}})
	defer root.close()
	root.collect()
	if root != nil || !isThere(pid) {
		t.Error("the child of somebody else was taken for CRIU's")
	}
	why := &criu.Error{Lines: []string{"Unable to create a thread: -17"}}
	if stranger := findKilledRoot(1, why); stranger != nil {
		t.Error("process 1 was taken for a child")
	}
	if nobody := findKilledRoot(1<<22, why); nobody != nil {
		t.Error("somebody was found where nobody is")
	}
}
