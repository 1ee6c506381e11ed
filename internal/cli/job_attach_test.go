package cli

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/client"
)

// silentJob is a daemon with a job that never prints anything.
type silentJob struct {
	stasisv1connect.UnimplementedJobServiceHandler

	attached chan struct{}
}

func (s *silentJob) Attach(ctx context.Context, stream *connect.BidiStream[v1.AttachRequest, v1.AttachResponse]) error {
	if _, err := stream.Receive(); err != nil {
		return err
	}
	if err := stream.Send(&v1.AttachResponse{Event: &v1.AttachResponse_Attached{Attached: &v1.Job{Spec: &v1.JobSpec{Name: "silent"}}}}); err != nil {
		return err
	}
	close(s.attached)
	<-ctx.Done()
	return ctx.Err()
}

// Who is attached to a job that prints nothing is let go at once by a signal, and by the keys, and not when the job prints next.
func TestLeaveSilentJob(t *testing.T) {
	tests := []struct {
		name  string
		leave func(keys *os.File, signal context.CancelCauseFunc)
		want  error
	}{
		{name: "signal", leave: func(_ *os.File, signal context.CancelCauseFunc) { signal(&interruption{unix.SIGTERM}) },
			want: exitStatus(exitSignal + 15)},
		{name: "keys", leave: func(keys *os.File, _ context.CancelCauseFunc) { _, _ = keys.Write([]byte{keyLeave1, keyLeave2}) }},
		{name: "signal after the end of input", leave: func(keys *os.File, signal context.CancelCauseFunc) {
			keys.Close()
			signal(&interruption{unix.SIGTERM})
		}, want: exitStatus(exitSignal + 15)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			job := &silentJob{attached: make(chan struct{})}
			c := serveJobs(t, job)
			in, keys, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			defer keys.Close()
			b := newBench(t)
			b.in = in
			ctx, signal := context.WithCancelCause(t.Context())
			defer signal(nil)
			ended := make(chan error, 1)
			go func() { ended <- b.attachTo(ctx, c, "silent", false) }()
			select {
			case <-job.attached:
			case err := <-ended:
				t.Fatalf("it ended before anybody was attached: %v", err)
			}
			test.leave(keys, signal)
			if err := <-ended; !errors.Is(err, test.want) { // the limit of all tests is for one that hangs
				t.Errorf("it ended with %v, not %v", err, test.want)
			}
		})
	}
}

// serveJobs serves a service of jobs on a socket, and gives a client for it.
func serveJobs(t *testing.T, jobs stasisv1connect.JobServiceHandler) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(stasisv1connect.NewJobServiceHandler(jobs))
	mux.Handle(stasisv1connect.NewSystemServiceHandler(anySystem{}))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: mux, Protocols: protocols} //nolint:gosec // the test's own
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	c, err := client.Connect(t.Context(), client.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// anySystem is a daemon that answers.
type anySystem struct {
	stasisv1connect.UnimplementedSystemServiceHandler
}

func (anySystem) Status(context.Context, *connect.Request[v1.StatusRequest]) (*connect.Response[v1.StatusResponse], error) {
	return connect.NewResponse(&v1.StatusResponse{}), nil
}
