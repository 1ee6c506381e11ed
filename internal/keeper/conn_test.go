package keeper

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestASignalInterruptsNothing: the runtime sends SIGURG to its threads whenever
// it likes, and calls on sockets with a limit of time are not restarted by the
// kernel.
func TestASignalInterruptsNothing(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := &conn{pair[0]}, &conn{pair[1]}
	defer ours.close()
	defer theirs.close()
	limit := unix.NsecToTimeval(time.Minute.Nanoseconds())
	if err := unix.SetsockoptTimeval(theirs.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	thread, done := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		fds, err := theirs.readFDs()
		closeAll(fds)
		done <- err
	}()
	tid := <-thread
	for range 50 {
		if err := unix.Tgkill(os.Getpid(), tid, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := unix.Sendmsg(ours.fd, []byte{0}, unix.UnixRights(int(null.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
