package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"connectrpc.com/connect"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/catalog"
	"stasis/internal/chain"
	"stasis/internal/peer"
	"stasis/internal/wire"
)

// maxRemove bounds the checkpoints of one request.
const maxRemove = 1000

// Remove deletes checkpoints. What others need of them stays until the last of those goes.
func (s *checkpointService) Remove(ctx context.Context, request *connect.Request[v1.RemoveCheckpointsRequest]) (*connect.Response[v1.RemoveCheckpointsResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	names := request.Msg.GetCheckpoints()
	if len(names) == 0 || len(names) > maxRemove {
		return nil, fmt.Errorf("%w: %d checkpoints: name 1 to %d", stasis.ErrInput, len(names), maxRemove)
	}
	c := s.daemon.engine.Catalog
	response := new(v1.RemoveCheckpointsResponse)
	var dirs []string
	for _, name := range names {
		e, err := c.Find(who.UID, name)
		if err != nil {
			return nil, err
		}
		if !c.Has(e.Dir) {
			return nil, fmt.Errorf("%w: %s is not in the daemon's folder: remove it with \"stasis rm %s\"", stasis.ErrInput, e.Dir, e.Dir)
		}
		dirs = append(dirs, e.Dir)
		response.Removed = append(response.Removed, wire.Checkpoint(e))
	}
	report, err := chain.Remove(dirs, chain.Options{})
	for _, dir := range dirs {
		c.Take(dir)
	}
	if err != nil {
		return nil, busyOr(err)
	}
	response.BytesFreed = report.Freed
	s.daemon.log.Info("removed checkpoints", "folders", dirs, "freed", report.Freed, "peer", who.String())
	return connect.NewResponse(response), nil
}

// busyOr makes what is in use a conflict.
func busyOr(err error) error {
	if errors.Is(err, chain.ErrBusy) {
		return fmt.Errorf("%w: %w", stasis.ErrBusy, err)
	}
	return err
}

// Prune deletes what a policy does not keep.
func (s *checkpointService) Prune(ctx context.Context, request *connect.Request[v1.PruneRequest]) (*connect.Response[v1.PruneResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	q := request.Msg
	policy, err := s.policyOf(q.GetRetention())
	if err != nil {
		return nil, err
	}
	home, err := s.homeOf(who, q.GetJob())
	if err != nil {
		return nil, err
	}
	options := chain.PruneOptions{Policy: policy, Options: chain.Options{DryRun: q.GetDryRun()}}
	if q.GetJob() != "" {
		options.GroupBy = func(*stasis.Manifest) string { return q.GetJob() } // whatever it has become by exec
	}
	c := s.daemon.engine.Catalog
	before := make(map[string]*catalog.Entry)
	for _, e := range c.List() {
		before[e.Dir] = e
	}
	decisions, report, err := chain.Prune(home, options)
	if err != nil {
		return nil, busyOr(err)
	}
	gone := make(map[string]bool)
	for _, item := range report.Removed {
		gone[item.Dir] = true
	}
	response := &v1.PruneResponse{BytesFreed: report.Freed}
	for _, decision := range decisions {
		e := before[decision.Dir]
		if e == nil {
			continue // made since
		}
		if gone[decision.Dir] {
			response.Removed = append(response.Removed, wire.Checkpoint(e))
			c.Take(decision.Dir)
		} else {
			response.Kept = append(response.Kept, wire.Checkpoint(e))
		}
	}
	if !q.GetDryRun() {
		s.daemon.log.Info("pruned", "folder", home, "removed", len(response.Removed), "freed", report.Freed, "peer", who.String())
	}
	return connect.NewResponse(response), nil
}

// policyOf is what a request says, or where it says nothing, the configuration.
func (s *checkpointService) policyOf(r *v1.Retention) (chain.Policy, error) {
	p := chain.Policy{
		Last: int(r.GetKeepLast()), Hourly: int(r.GetKeepHourly()), Daily: int(r.GetKeepDaily()), Weekly: int(r.GetKeepWeekly()),
		Monthly: int(r.GetKeepMonthly()), MaxBytes: r.GetMaxBytes(),
	}
	if min(p.Last, p.Hourly, p.Daily, p.Weekly, p.Monthly) < 0 || p.MaxBytes < 0 {
		return p, fmt.Errorf("%w: the numbers of a retention are positive", stasis.ErrInput)
	}
	if r == nil {
		k := &s.daemon.opts.Config.Checkpoint.Keep
		p = chain.Policy{Last: k.Last, Hourly: k.Hourly, Daily: k.Daily, Weekly: k.Weekly, Monthly: k.Monthly, MaxBytes: k.Bytes}
	}
	if p.Empty() && p.MaxBytes == 0 {
		return p, fmt.Errorf("%w: nothing says what to keep: give a retention, or set checkpoint.keep_last and the like", stasis.ErrInput)
	}
	return p, nil
}

// homeOf is the folder of the caller's checkpoints, or of those of a job that the caller may touch.
func (s *checkpointService) homeOf(who peer.Peer, job string) (string, error) {
	c := s.daemon.engine.Catalog
	if job == "" {
		return c.Home(who.UID, ""), nil
	}
	home := ""
	for _, e := range c.List() {
		if e.Job != job || !who.May(e.Owner) {
			continue
		}
		if at := filepath.Dir(e.Dir); home == "" {
			home = at
		} else if home != at {
			return "", fmt.Errorf("%w: several users have a job %s: ask as the one", stasis.ErrInput, job)
		}
	}
	if home == "" {
		return "", fmt.Errorf("%w: no checkpoint of a job %s", wire.ErrUnknown, job)
	}
	return home, nil
}
