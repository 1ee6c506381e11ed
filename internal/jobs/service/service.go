// Package service serves the jobs of a manager as the daemon's JobService: it turns messages into calls and back, and decides what
// the caller may do.
//
// Root may do everything. Others see and touch only their own jobs, which run as themselves, and whose dumps and restores are held to
// what they could do without Stasis; another user's job does not exist for them.
//
// All methods may be called from several goroutines at once.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"connectrpc.com/connect"

	"stasis"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/config"
	"stasis/internal/engine"
	"stasis/internal/jobs"
	"stasis/internal/jobs/db"
	"stasis/internal/peer"
	"stasis/internal/ready"
	"stasis/internal/store"
	"stasis/internal/wire"
)

// Service is the JobService.
type Service struct {
	stasisv1connect.UnimplementedJobServiceHandler

	manager *jobs.Manager
	config  *config.Config
	parts   parts
	lists   ready.Answers[question]
}

var _ stasisv1connect.JobServiceHandler = (*Service)(nil)

// New opens the jobs of a machine as its configuration says, with a daemon's engine.
func New(e *engine.Engine, criuPath string, log *slog.Logger) (*Service, error) {
	c := e.Config
	m, err := jobs.Open(context.Background(), jobs.Options{
		Database: c.Jobs.State, Dir: c.Jobs.Dir, Checkpoints: filepath.Clean(c.Checkpoint.Dir),
		Parallel: c.Checkpoint.Dumps(), MaxRetries: c.Jobs.MaxRetries, RestartDelay: c.Jobs.RestartDelay, MaxChain: c.Jobs.MaxChain,
		DumpOnStop: c.Jobs.DumpOnStop, GoingDown: func() bool { return machineGoesDown(log) }, LogBytes: c.Jobs.LogBytes, CRIUPath: criuPath, Engine: &through{engine: e}, Log: log,
		Keep: db.Keep{
			Last: c.Checkpoint.Keep.Last, Hourly: c.Checkpoint.Keep.Hourly, Daily: c.Checkpoint.Keep.Daily,
			Weekly: c.Checkpoint.Keep.Weekly, Monthly: c.Checkpoint.Keep.Monthly, Bytes: c.Checkpoint.Keep.Bytes,
		},
	})
	if err != nil {
		return nil, err
	}
	return With(m, c), nil
}

// With serves the jobs of a manager.
func With(m *jobs.Manager, c *config.Config) *Service { return &Service{manager: m, config: c} }

// Options is for the daemon, see its Jobs.
func (s *Service) Options() connect.HandlerOption { return s.lists.Options() }

// Counts is for the daemon, see its Jobs.
func (s *Service) Counts(uid uint32) (all, running int) { return s.manager.Counts(uid) }

// Needed is for the daemon, see its Jobs.
func (s *Service) Needed() bool { return s.manager.Needed() }

// Close is for the daemon, see its Jobs.
func (s *Service) Close(ctx context.Context) error { return s.manager.Close(ctx) }

// caller is who calls. Without one nobody may do anything.
func caller(ctx context.Context) (peer.Peer, error) {
	p, ok := peer.From(ctx)
	if !ok {
		return p, fmt.Errorf("%w: it is not known who calls", wire.ErrDenied)
	}
	return p, nil
}

// find finds a job that the caller may see.
func (s *Service) find(ctx context.Context, name string) (peer.Peer, jobs.Info, error) {
	p, err := caller(ctx)
	if err != nil {
		return p, jobs.Info{}, err
	}
	info, err := s.manager.Visible(name, p.UID)
	if err != nil {
		return p, info, explained(err)
	}
	return p, info, nil
}

// explained gives the manager's errors the kinds that the API knows.
func explained(err error) error {
	for is, kind := range map[error]error{
		jobs.ErrUnknown: wire.ErrUnknown, jobs.ErrExists: store.ErrExists, jobs.ErrState: stasis.ErrConflict, jobs.ErrTooMany: wire.ErrLimit,
	} {
		if errors.Is(err, is) {
			return &kindred{err, kind}
		}
	}
	return err
}

// kindred is an error that is of a kind besides, without saying so twice.
type kindred struct {
	error
	kind error
}

func (e *kindred) Unwrap() []error { return []error{e.kind, e.error} }

// answer makes a response.
func answer[T any](message *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, explained(err)
	}
	return connect.NewResponse(message), nil
}
