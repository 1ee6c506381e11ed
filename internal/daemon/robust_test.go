package daemon

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/config"
	"stasis/internal/engine"
	"stasis/internal/health"
)

// fake is a library that does as a test says.
func fake(dump func(context.Context, stasis.DumpOptions) error) func(*Options) {
	return func(o *Options) {
		o.Library = engine.Library{
			Dump: func(ctx context.Context, d stasis.DumpOptions) (*stasis.DumpResult, error) {
				if err := dump(ctx, d); err != nil {
					return nil, err
				}
				return &stasis.DumpResult{Dir: d.Dir, After: d.After, Manifest: &stasis.Manifest{ID: strings.Repeat("0", 32)}}, nil
			},
			PreDump: func(context.Context, stasis.PreDumpOptions) (*stasis.DumpResult, error) {
				return nil, stasis.ErrProcess
			},
			Restore: func(context.Context, stasis.RestoreOptions) (*stasis.RestoreResult, error) {
				return nil, stasis.ErrConflict
			},
		}
		o.Machine = func(context.Context, string) []health.Result { return nil }
		o.Process = func(context.Context, int) []health.Result { return nil }
		o.Full = func(context.Context, *engine.Engine) []health.Result { return nil }
	}
}

// A client that never reads holds nobody up, and in the end its dump is given up as if it had been cancelled.
func TestClientThatNeverReads(t *testing.T) {
	var cancelled, reports atomic.Int64
	b := serve(t, func(o *Options) {
		fake(func(ctx context.Context, d stasis.DumpOptions) error {
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					cancelled.Add(1)
					return ctx.Err()
				case <-time.After(10 * time.Microsecond):
					// Steps with long names, each a round of its own: nothing can be left out.
					d.Progress(stasis.Progress{Step: stasis.Step(strings.Repeat("x", 100_000)), Round: n})
					reports.Add(1)
				}
			}
		})(o)
		o.Config.Checkpoint.MaxDumps, o.writeTimeout = 2, 300*time.Millisecond
	})
	body := []byte(`{"pid": 2, "name": "x"}`)
	envelope := append([]byte{0, 0, 0, 0, byte(len(body))}, body...)
	for range 2 { // as many as there may be dumps at once
		conn, err := net.Dial("unix", b.config.Daemon.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_, err = fmt.Fprintf(conn, "POST /stasis.v1.CheckpointService/Dump HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%s", len(envelope), envelope)
		if err != nil {
			t.Fatal(err)
		}
	}
	until(t, "both dumps report", func() bool { dumps, _ := b.engine.Busy(); return dumps == 2 && reports.Load() > 100 })
	begun := time.Now()
	if _, err := b.system(t, 0).Status(t.Context(), connect.NewRequest(&v1.StatusRequest{})); err != nil || time.Since(begun) > time.Second {
		t.Errorf("another call took %v: %v", time.Since(begun), err)
	}
	until(t, "both dumps are given up", func() bool { return cancelled.Load() == 2 })
	until(t, "the calls end", func() bool { return b.calls.idle() > 0 })
}

// The same over HTTP/2, where the client's connection is read but its window is full.
func TestWindowThatStaysFull(t *testing.T) {
	var cancelled atomic.Bool
	raw := make([]byte, 1<<19) // that does not compress
	_, _ = crand.Read(raw)     // it never fails
	long := stasis.Step(hex.EncodeToString(raw))
	b := serve(t, func(o *Options) {
		fake(func(ctx context.Context, d stasis.DumpOptions) error {
			for n := 0; ctx.Err() == nil; n++ {
				d.Progress(stasis.Progress{Step: long, Round: n})
				select {
				case <-ctx.Done():
				case <-time.After(time.Millisecond):
				}
			}
			cancelled.Store(true)
			return ctx.Err()
		})(o)
		o.writeTimeout = 300 * time.Millisecond
	})
	c := b.checkpoints(t, 0)
	stream, err := c.Dump(t.Context(), connect.NewRequest(&v1.DumpRequest{Pid: 2, Name: "x"}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	// Other calls on the same connection go on.
	for range 3 {
		if _, err := c.List(t.Context(), connect.NewRequest(&v1.ListCheckpointsRequest{})); err != nil {
			t.Error(err)
		}
	}
	until(t, "the dump is given up", cancelled.Load)
}

// A panic ends its call, says so in the log, and leaves the daemon and others alone.
func TestPanic(t *testing.T) {
	b := serve(t, func(o *Options) {
		fake(func(context.Context, stasis.DumpOptions) error { panic("the dump went mad") })(o)
		o.Machine = func(context.Context, string) []health.Result { panic("the check went mad") }
	})
	expect(t, "dump", dumpErr(t, b.checkpoints(t, 0), &v1.DumpRequest{Pid: 2, Name: "x"}), connect.CodeInternal)
	_, err := b.system(t, 0).Check(t.Context(), connect.NewRequest(&v1.CheckRequest{}))
	expect(t, "check", err, connect.CodeInternal)
	if strings.Contains(err.Error(), "mad") {
		t.Errorf("the caller gets what is the log's: %v", err)
	}
	for _, what := range []string{"the dump went mad", "the check went mad"} {
		if !strings.Contains(b.log.String(), what) {
			t.Errorf("the log lacks %q", what)
		}
	}
	if _, err := b.system(t, 0).Status(t.Context(), connect.NewRequest(&v1.StatusRequest{})); err != nil {
		t.Errorf("the next call: %v", err)
	}
	if dumps, _ := b.engine.Busy(); dumps != 0 {
		t.Errorf("%d dumps under way", dumps)
	}
}

// A daemon that stops lets a running dump come to its end, ends calls that never would, and takes no new ones.
func TestStopWaits(t *testing.T) {
	release := make(chan struct{})
	b := serve(t, func(o *Options) {
		fake(func(ctx context.Context, d stasis.DumpOptions) error {
			d.Progress(stasis.Progress{Step: stasis.StepCopy})
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})(o)
		o.Config.Daemon.StopTimeout = time.Minute
	})
	c, s := b.checkpoints(t, 0), b.system(t, 0)
	stream, err := c.Dump(t.Context(), connect.NewRequest(&v1.DumpRequest{Pid: 2, Name: "x"}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	if _, err := s.Stop(t.Context(), connect.NewRequest(&v1.StopRequest{})); err != nil {
		t.Fatal(err)
	}
	until(t, "it listens no more", func() bool {
		conn, err := net.Dial("unix", b.config.Daemon.Socket)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	select {
	case <-b.served:
		t.Fatal("it did not wait for the dump")
	default:
	}
	close(release)
	got := false
	for stream.Receive() {
		got = got || stream.Msg().GetResult() != nil
	}
	if !got || stream.Err() != nil {
		t.Errorf("the dump: %v", stream.Err())
	}
	select {
	case err := <-b.served:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
		b.served <- nil
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	if _, err := os.Stat(b.config.Daemon.Socket); err == nil {
		t.Error("the socket is still there")
	}
}

// What does not end in time is cancelled.
func TestStopCancels(t *testing.T) {
	ended := make(chan error, 1)
	b := serve(t, func(o *Options) {
		fake(func(ctx context.Context, d stasis.DumpOptions) error {
			d.Progress(stasis.Progress{Step: stasis.StepCopy})
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		})(o)
		o.Config.Daemon.StopTimeout = 50 * time.Millisecond
	})
	stream, err := b.checkpoints(t, 0).Dump(t.Context(), connect.NewRequest(&v1.DumpRequest{Pid: 2, Name: "x"}))
	if err != nil || !stream.Receive() {
		t.Fatal(err)
	}
	defer stream.Close()
	b.Stop()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the dump was not cancelled")
	}
}

// closing is what looks after jobs that notes what time it is given in the end.
type closing struct {
	Jobs
	left chan error
}

func (c closing) Options() connect.HandlerOption   { return connect.WithHandlerOptions() }
func (c closing) Counts(uint32) (all, running int) { return 0, 0 }
func (c closing) Needed() bool                     { return false }
func (c closing) Close(ctx context.Context) error  { c.left <- ctx.Err(); return nil }

// Calls that take all of their time when the daemon stops leave the jobs theirs, for their last checkpoints.
func TestLateCallsDoNotCostTheJobsTheirCheckpoints(t *testing.T) {
	left := make(chan error, 1)
	b := serve(t, func(o *Options) {
		fake(func(ctx context.Context, d stasis.DumpOptions) error {
			d.Progress(stasis.Progress{Step: stasis.StepCopy})
			<-ctx.Done()
			return ctx.Err()
		})(o)
		o.Jobs = func(*engine.Engine, *slog.Logger) (Jobs, error) { return closing{left: left}, nil }
	})
	stream, err := b.checkpoints(t, 0).Dump(t.Context(), connect.NewRequest(&v1.DumpRequest{Pid: 2, Name: "x"}))
	if err != nil || !stream.Receive() {
		t.Fatal(err)
	}
	defer stream.Close()
	b.Stop()
	select {
	case err := <-left:
		if err != nil {
			t.Errorf("the jobs have no time: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the jobs are not told to close")
	}
}

// A daemon that was started on demand leaves when it has nothing to do, and not before.
func TestOnDemand(t *testing.T) {
	release := make(chan struct{})
	b := serve(t, func(o *Options) {
		fake(func(ctx context.Context, _ stasis.DumpOptions) error {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return ctx.Err()
		})(o)
		o.OnDemand, o.Config.Daemon.IdleTimeout = true, 100*time.Millisecond
	})
	done := make(chan error, 1)
	go func() { done <- dumpErr(t, b.checkpoints(t, 0), &v1.DumpRequest{Pid: 2, Name: "x"}) }()
	select {
	case <-b.served:
		t.Fatal("it left in the middle of a dump")
	case <-time.After(400 * time.Millisecond):
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	select {
	case err := <-b.served:
		b.served <- err
	case <-time.After(10 * time.Second):
		t.Error("it does not leave")
	}
}

// There is one daemon for a socket; what an ended one has left is replaced, and nothing else.
func TestSocket(t *testing.T) {
	dir := openDir(t)
	c := &config.Daemon{Socket: filepath.Join(dir, "s.sock")}
	first, err := Listen(c, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(c, 50*time.Millisecond); !errors.Is(err, ErrRunning) {
		t.Errorf("a second daemon: %v", err)
	}
	// Killed: the lock goes with the process, the socket stays.
	first.Listeners[0].(*net.UnixListener).SetUnlinkOnClose(false)
	first.Close()
	if _, err := os.Stat(c.Socket); err != nil {
		t.Fatal("the socket did not stay")
	}
	second, err := Listen(c, 0)
	if err != nil {
		t.Fatalf("after a daemon was killed: %v", err)
	}
	second.Close()
	if err := os.WriteFile(c.Socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(c, 0); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file in the place of the socket: %v", err)
	}
	if err := os.Remove(c.Socket); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Listen(c, 0); !errors.Is(err, ErrRunning) {
		t.Errorf("something else that listens: %v", err)
	}
	// In a folder such as /tmp, or below one that others can write to, anybody could be there first.
	for _, mode := range []os.FileMode{0o777, 0o777 | os.ModeSticky} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(c, 0); err == nil || !strings.Contains(err.Error(), "can be written by others") {
			t.Errorf("a folder of mode %v: %v", mode, err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	below := &config.Daemon{Socket: filepath.Join(dir, "own", "s.sock")}
	if _, err := Listen(below, 0); err == nil || !strings.Contains(err.Error(), "can be replaced by others") {
		t.Errorf("below a folder that others can write to: %v", err)
	}
	if _, err := Listen(c, 0); err == nil || !strings.Contains(err.Error(), "can be written by others") {
		t.Errorf("a folder that all can write: %v", err)
	}
}
