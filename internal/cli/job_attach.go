package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
)

func (a *app) attachCommand() *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "attach JOB",
		Short: "Work in a job's terminal",
		Long: `Connects this terminal with a job's. Ctrl-P Ctrl-Q leaves it, and the job goes on. It stays connected while the job is brought back,
and ends with the job, whose exit code it then has.`,
		Args:              oneJob,
		ValidArgsFunction: a.completeJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(cmd.Context(), func(c *client.Client) error { return a.attachTo(cmd.Context(), c, args[0], readOnly) })
		},
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "only watch: what is typed is not passed on")
	return cmd
}

// attachStream is a connection with a job's terminal.
type attachStream struct {
	*connect.BidiStreamForClient[v1.AttachRequest, v1.AttachResponse]

	sending sync.Mutex
}

func (s *attachStream) send(m *v1.AttachRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.Send(m)
}

// attachTo connects this terminal with a job's, until the user leaves or the job is over.
func (a *app) attachTo(ctx context.Context, c *client.Client, job string, readOnly bool) error {
	called := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := &attachStream{BidiStreamForClient: c.Jobs.Attach(ctx)}
	// A call that has its side of the stream open does not look at its context: without this a signal, or leaving, would be
	// noticed when the job prints next.
	defer context.AfterFunc(ctx, func() { _ = stream.CloseRequest() })()
	fd := int(a.in.Fd())
	if err := stream.send(&v1.AttachRequest{Event: &v1.AttachRequest_Start{Start: &v1.AttachStart{Job: job, Size: windowOf(fd), ReadOnly: readOnly}}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	first, err := stream.Receive() // an error says whether there is such a job
	if err != nil {
		return a.endOfStream(called, err)
	}
	if isTerminal(fd) {
		if !a.quiet {
			fmt.Fprintf(a.err, "attached to job %s; Ctrl-P Ctrl-Q leaves it\r\n", first.GetAttached().GetSpec().GetName())
		}
		before, err := term.MakeRaw(fd)
		if err != nil {
			return fmt.Errorf("prepare this terminal: %w", err)
		}
		defer func() { _ = term.Restore(fd, before) }()
		resized := make(chan os.Signal, 1)
		signal.Notify(resized, unix.SIGWINCH)
		defer signal.Stop(resized)
		go func() {
			for range resized {
				_ = stream.send(&v1.AttachRequest{Event: &v1.AttachRequest_Size{Size: windowOf(fd)}})
			}
		}()
	}
	left := make(chan struct{})
	go func() {
		if passKeys(a.in, stream) {
			close(left)
			cancel()
		}
	}()
	last, err := a.showOutput(stream)
	select {
	case <-left:
		if !a.quiet {
			fmt.Fprintf(a.err, "\r\nleft job %s, which goes on\r\n", job)
		}
		return nil
	default:
	}
	if called.Err() != nil { // however the stream ended then
		err = cmp.Or(err, called.Err())
	}
	if err != nil {
		return a.endOfStream(called, err)
	}
	return exitOf(last)
}

func windowOf(fd int) *v1.TerminalSize {
	cols, rows, err := term.GetSize(fd)
	if err != nil {
		return nil
	}
	return &v1.TerminalSize{Rows: uint32(rows), Columns: uint32(cols)} //nolint:gosec // small
}

// showOutput writes what the job prints, and returns how the job is at last.
func (a *app) showOutput(stream *attachStream) (*v1.Job, error) {
	var last *v1.Job
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		if m.GetChanged() != nil {
			last = m.GetChanged()
		}
		if _, err := a.out.Write(m.GetOutput()); err != nil {
			return nil, fmt.Errorf("write what the job prints: %w", err)
		}
	}
}

// The keys that leave a job.
const (
	keyLeave1 = 'P' - '@'
	keyLeave2 = 'Q' - '@'
)

// passKeys passes on what is typed. It is true when the user wants to leave.
func passKeys(in io.Reader, stream *attachStream) bool {
	buf, held := make([]byte, 4096), false
	for {
		n, err := in.Read(buf)
		if n > 0 {
			keys, leave := leaveKeys(buf[:n], &held)
			if len(keys) > 0 && stream.send(&v1.AttachRequest{Event: &v1.AttachRequest_Input{Input: keys}}) != nil {
				return false
			}
			if leave {
				return true
			}
		}
		if err != nil {
			return false // a job is watched on when there is nothing more to tell it
		}
	}
}

// leaveKeys looks for Ctrl-P Ctrl-Q, and gives what is to be passed on. A Ctrl-P is held back until the next key is known.
func leaveKeys(typed []byte, held *bool) (keys []byte, leave bool) {
	var out bytes.Buffer
	for _, key := range typed {
		switch {
		case *held && key == keyLeave2:
			return out.Bytes(), true
		case *held && key == keyLeave1:
			out.WriteByte(keyLeave1)
			continue
		case *held:
			out.WriteByte(keyLeave1)
			*held = false
		}
		if key == keyLeave1 {
			*held = true
			continue
		}
		out.WriteByte(key)
	}
	return out.Bytes(), false
}

// exitOf is the exit code of a job that is over.
func exitOf(j *v1.Job) error {
	e := j.GetExit()
	switch {
	case e == nil || e.GetSignal() == 0 && e.GetCode() == 0:
		return nil
	case e.GetSignal() != 0:
		return exitStatus(exitSignal + int(e.GetSignal()))
	}
	return exitStatus(int(e.GetCode()))
}
