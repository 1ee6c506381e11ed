package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "stasis/api/stasis/v1"
	"stasis/internal/jobs"
	"stasis/internal/jobs/shim"
)

func durationOf(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// Attach implements the JobService.
func (s *Service) Attach(ctx context.Context, stream *connect.BidiStream[v1.AttachRequest, v1.AttachResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return bad("the first message has to be start")
	}
	_, info, err := s.find(ctx, start.GetJob())
	if err != nil {
		return err
	}
	rows, cols := sizeOf(start.GetSize())
	terminal, err := s.manager.Attach(ctx, info.Spec.Name, rows, cols)
	if err != nil {
		return explained(err)
	}
	defer terminal.Close()
	defer context.AfterFunc(ctx, func() { terminal.Close() })()
	if err := stream.Send(&v1.AttachResponse{Event: &v1.AttachResponse_Attached{Attached: jobMessage(&info)}}); err != nil {
		return err
	}
	typed := make(chan error, 1)
	go func() {
		typed <- passInput(stream, terminal, start.GetReadOnly())
		terminal.Close() // the client has left
	}()
	if err := s.passOutput(stream, terminal, info); err != nil {
		return err
	}
	select {
	case err := <-typed:
		return err
	default:
		return ctx.Err()
	}
}

// passInput passes on what is typed, until the client closes its side.
func passInput(stream *connect.BidiStream[v1.AttachRequest, v1.AttachResponse], terminal *shim.Terminal, readOnly bool) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case m.GetSize() != nil:
			err = terminal.Resize(sizeOf(m.GetSize()))
		case len(m.GetInput()) > 0 && !readOnly:
			_, err = terminal.Write(m.GetInput())
		}
		if err != nil {
			return nil //nolint:nilerr // the job is over, which the other direction tells
		}
	}
}

// passOutput passes on what the job prints, until its end.
func (s *Service) passOutput(stream *connect.BidiStream[v1.AttachRequest, v1.AttachResponse], terminal *shim.Terminal, info jobs.Info) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := terminal.Read(buf)
		if n > 0 {
			if err := stream.Send(&v1.AttachResponse{Event: &v1.AttachResponse_Output{Output: buf[:n]}}); err != nil {
				return fmt.Errorf("send what the job prints: %w", err)
			}
		}
		if err != nil {
			break
		}
	}
	if now, err := s.manager.Get(info.ID); err == nil {
		return stream.Send(&v1.AttachResponse{Event: &v1.AttachResponse_Changed{Changed: jobMessage(&now)}})
	}
	return nil
}
