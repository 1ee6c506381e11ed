package client

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestADaemonThatIsKilledMeanwhile: whoever has just connected is told that there is no daemon, whether the end of the connection shows
// while the question is sent or while the answer is awaited.
func TestADaemonThatIsKilledMeanwhile(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for wait := time.Duration(0); ; wait = (wait + 50*time.Microsecond) % time.Millisecond {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			<-time.After(wait)
			_ = conn.Close() // the kernel resets it where something is unread, as it does for a process that is killed
		}
	}()
	c, err := newClient(Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := c.hello(ctx)
		cancel()
		if err, nobody := explainHello(Options{Socket: socket}, err); !nobody || !errors.Is(err, ErrNoDaemon) {
			t.Fatalf("it says %v", err)
		}
	}
}
