package service

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/engine"
	"stasis/internal/jobs"
	"stasis/internal/jobs/db"
	"stasis/internal/peer"
	"stasis/internal/relay"
	"stasis/internal/wire"
)

// Run implements the JobService.
func (s *Service) Run(ctx context.Context, request *connect.Request[v1.RunRequest]) (*connect.Response[v1.RunResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	spec, err := s.specFor(p, request.Msg.GetSpec())
	if err != nil {
		return nil, err
	}
	info, err := s.manager.Run(ctx, spec, p.UID)
	return answer(&v1.RunResponse{Job: jobMessage(&info)}, err)
}

// specFor reads what a job is to be, and refuses what is not the caller's to ask for.
func (s *Service) specFor(p peer.Peer, m *v1.JobSpec) (db.Spec, error) {
	spec, err := specOf(m, p, s.config)
	if err != nil {
		return spec, err
	}
	return spec, engine.Harmless(p, &spec.Settings.CRIU)
}

// List implements the JobService. A token is the id of the last job before the page.
func (s *Service) List(ctx context.Context, request *connect.Request[v1.ListJobsRequest]) (*connect.Response[v1.ListJobsResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	q := request.Msg
	size, err := wire.PageSize(q.GetPageSize())
	if err != nil {
		return nil, err
	}
	question, common := questionOf(p, q, size)
	generation := s.manager.Generation() // before anything is looked at
	if common {
		if kept, ok := s.lists.Get(question, generation).(*v1.ListJobsResponse); ok {
			return connect.NewResponse(kept), nil
		}
	}
	response, err := s.page(p, q, size)
	if err != nil {
		return nil, err
	}
	if common {
		s.lists.Put(question, generation, response)
	}
	return connect.NewResponse(response), nil
}

// question is all on which a list of jobs depends, beside the jobs.
type question struct {
	uid   uint32
	size  int
	token string
	brief bool
}

// questionOf says what is asked, and whether it is asked often enough for its answer to be kept.
func questionOf(p peer.Peer, q *v1.ListJobsRequest, size int) (question, bool) {
	return question{p.UID, size, q.GetPageToken(), q.GetBrief()}, len(q.GetStates()) == 0 && len(q.GetPageToken()) <= idLength
}

// page makes one page of the jobs that somebody may see.
func (s *Service) page(p peer.Peer, q *v1.ListJobsRequest, size int) (*v1.ListJobsResponse, error) {
	wanted := make(map[v1.JobState]bool)
	for _, state := range q.GetStates() {
		wanted[state] = true
	}
	response := &v1.ListJobsResponse{}
	begun := q.GetPageToken() == ""
	all := s.manager.List(p.UID)
	var page []*jobs.Info
	for k := range all {
		info := &all[k]
		if len(wanted) > 0 && !wanted[stateMessage(info)] {
			continue
		}
		response.Total++
		switch {
		case !begun:
			begun = info.ID == q.GetPageToken()
		case len(page) < size:
			page = append(page, info)
		case response.NextPageToken == "":
			response.NextPageToken = page[size-1].ID
		}
	}
	if !begun {
		return nil, bad("page_token: the job that the page begins after is not there any more: begin anew")
	}
	response.Jobs = s.parts.describe(page, q.GetBrief(), len(all))
	return response, nil
}

// Get implements the JobService.
func (s *Service) Get(ctx context.Context, request *connect.Request[v1.GetJobRequest]) (*connect.Response[v1.GetJobResponse], error) {
	_, info, err := s.find(ctx, request.Msg.GetJob())
	return answer(&v1.GetJobResponse{Job: jobMessage(&info)}, err)
}

// Update implements the JobService.
func (s *Service) Update(ctx context.Context, request *connect.Request[v1.UpdateJobRequest]) (*connect.Response[v1.UpdateJobResponse], error) {
	q := request.Msg
	_, info, err := s.find(ctx, q.GetJob())
	if err != nil {
		return nil, err
	}
	var change jobs.Change
	if q.GetSchedule() != nil {
		every, cron, err := scheduleOf(q.GetSchedule())
		if err != nil {
			return nil, err
		}
		change.Every, change.Cron = &every, &cron
	}
	if q.GetRetention() != nil {
		keep := keepOf(q.GetRetention())
		change.Keep = &keep
	}
	if q.GetRestart() != nil {
		var spec db.Spec
		if err := restartOf(q.GetRestart(), &spec); err != nil {
			return nil, err
		}
		change.Restart, change.MaxRetries, change.RestartDelay, change.FromScratch = &spec.Restart, &spec.MaxRetries, &spec.RestartDelay, &spec.FromScratch
	}
	info, err = s.manager.Update(info.Spec.Name, change)
	return answer(&v1.UpdateJobResponse{Job: jobMessage(&info)}, err)
}

// Remove implements the JobService.
func (s *Service) Remove(ctx context.Context, request *connect.Request[v1.RemoveJobRequest]) (*connect.Response[v1.RemoveJobResponse], error) {
	_, info, err := s.find(ctx, request.Msg.GetJob())
	if err != nil {
		return nil, err
	}
	info, err = s.manager.Remove(ctx, info.Spec.Name, request.Msg.GetCheckpoints(), request.Msg.GetForce())
	return answer(&v1.RemoveJobResponse{Job: jobMessage(&info)}, err)
}

// Kill implements the JobService.
func (s *Service) Kill(ctx context.Context, request *connect.Request[v1.KillRequest]) (*connect.Response[v1.KillResponse], error) {
	_, info, err := s.find(ctx, request.Msg.GetJob())
	if err != nil {
		return nil, err
	}
	sig := syscall.Signal(request.Msg.GetSignal())
	if sig == 0 {
		sig = syscall.SIGTERM
	}
	if sig < 0 || sig > 64 {
		return nil, bad("there is no signal %d", int(sig))
	}
	info, err = s.manager.Kill(ctx, info.Spec.Name, sig, request.Msg.GetAll())
	return answer(&v1.KillResponse{Job: jobMessage(&info)}, err)
}

// Manage implements the JobService.
func (s *Service) Manage(ctx context.Context, request *connect.Request[v1.ManageRequest]) (*connect.Response[v1.ManageResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	pid := int(request.Msg.GetPid())
	if pid <= 1 {
		return nil, bad("process id %d: it must be greater than 1", pid)
	}
	if err := engine.Theirs(pid, p); err != nil {
		return nil, err
	}
	spec, err := s.specFor(p, request.Msg.GetSpec())
	if err != nil {
		return nil, err
	}
	info, err := s.manager.Manage(ctx, pid, spec, p.UID)
	return answer(&v1.ManageResponse{Job: jobMessage(&info)}, err)
}

// Dump implements the JobService.
func (s *Service) Dump(ctx context.Context, request *connect.Request[v1.DumpJobRequest], stream *connect.ServerStream[v1.DumpResponse]) error {
	q := request.Msg
	p, info, err := s.find(ctx, q.GetJob())
	if err != nil {
		return err
	}
	r := jobs.DumpRequest{Full: q.GetFull()}
	if r.After, err = wire.After(q.GetAfter(), stasis.AfterRun); err != nil {
		return err
	}
	if q.GetSettings() != nil {
		set, err := settingsOf(q.GetSettings(), s.config)
		if err != nil {
			return err
		}
		if err := engine.Harmless(p, &set.CRIU); err != nil {
			return err
		}
		r.Settings = &set
	}
	begun := time.Now()
	dumped, err := relay.Progress(ctx, func(m stasis.Progress) error {
		return stream.Send(&v1.DumpResponse{Event: &v1.DumpResponse_Progress{Progress: wire.Progress(m)}})
	}, func(ctx context.Context, report func(stasis.Progress)) (*jobs.Dumped, error) {
		r.Progress = report
		return s.manager.Dump(ctx, info.Spec.Name, r)
	})
	if err != nil {
		return explained(err)
	}
	result := wire.DumpResult(dumped.Result, wire.EntryOf(dumped.Result, info.Owner), time.Since(begun))
	result.Checkpoint.Job = info.Spec.Name
	return stream.Send(&v1.DumpResponse{Event: &v1.DumpResponse_Result{Result: result}})
}

// Restore implements the JobService.
func (s *Service) Restore(ctx context.Context, request *connect.Request[v1.RestoreJobRequest], stream *connect.ServerStream[v1.RestoreResponse]) error {
	q := request.Msg
	p, info, err := s.find(ctx, q.GetJob())
	if err != nil {
		return err
	}
	if !p.Root() && q.GetForce() {
		return fmt.Errorf("%w: force is root's", wire.ErrDenied)
	}
	if q.GetLazy() {
		return bad("lazy: a job is restored with all of its memory: leave it out")
	}
	done, err := s.manager.Restore(ctx, info.Spec.Name, jobs.RestoreRequest{At: q.GetAt(), Force: q.GetForce()})
	if err != nil {
		return explained(err)
	}
	return stream.Send(&v1.RestoreResponse{Event: &v1.RestoreResponse_Result{Result: restoredMessage(done, info.Owner)}})
}

// Evacuate implements the JobService.
func (s *Service) Evacuate(ctx context.Context, request *connect.Request[v1.EvacuateRequest], stream *connect.ServerStream[v1.EvacuateResponse]) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	q := request.Msg
	if !q.GetDeadline().IsValid() || q.GetDeadline().AsDuration() <= 0 {
		return bad("deadline: within what time has it to be done? Give a positive time, such as 30 s")
	}
	after, err := wire.After(q.GetAfter(), stasis.AfterKill)
	if err != nil {
		return err
	}
	begun := time.Now()
	summary := &v1.EvacuateSummary{}
	outcomes := make(chan jobs.Outcome, 64)
	failed := make(chan error, 1)
	go func() {
		defer close(outcomes)
		failed <- s.manager.Evacuate(context.WithoutCancel(ctx), q.GetDeadline().AsDuration(), after, p.UID, q.GetJobs(), func(o jobs.Outcome) { outcomes <- o })
	}()
	var sendErr error
	for o := range outcomes {
		m := &v1.EvacuateOutcome{Job: jobMessage(&o.Job), Safe: o.Safe}
		if o.Checkpoint != nil {
			m.Checkpoint = checkpointMessage(o.Checkpoint, o.Job.Owner)
		}
		if o.Safe {
			summary.Safe++
		} else {
			summary.Unsafe++
			m.Error = o.Err.Error()
		}
		if sendErr == nil { // what was asked for is done all the same
			sendErr = stream.Send(&v1.EvacuateResponse{Event: &v1.EvacuateResponse_Outcome{Outcome: m}})
		}
	}
	if err := <-failed; err != nil {
		return explained(err)
	}
	if sendErr != nil {
		return sendErr
	}
	summary.Took = durationOf(time.Since(begun))
	return stream.Send(&v1.EvacuateResponse{Event: &v1.EvacuateResponse_Summary{Summary: summary}})
}

// Logs implements the JobService.
func (s *Service) Logs(ctx context.Context, request *connect.Request[v1.LogsRequest], stream *connect.ServerStream[v1.LogsResponse]) error {
	q := request.Msg
	_, info, err := s.find(ctx, q.GetJob())
	if err != nil {
		return err
	}
	if q.GetSince() != nil {
		return bad("since: a log has what the job wrote, without times: use tail")
	}
	lines := -1
	if q.Tail != nil {
		if lines = int(q.GetTail()); lines < 0 {
			return bad("tail is %d: it is a number of lines", lines)
		}
	}
	return s.manager.Logs(ctx, info.Spec.Name, lines, q.GetFollow(), writer(func(b []byte) error {
		return stream.Send(&v1.LogsResponse{Data: b})
	}))
}

type writer func([]byte) error

func (w writer) Write(b []byte) (int, error) {
	if err := w(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Events implements the JobService.
func (s *Service) Events(ctx context.Context, request *connect.Request[v1.EventsRequest], stream *connect.ServerStream[v1.EventsResponse]) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	q := request.Msg
	job := q.GetJob()
	if job != "" {
		if _, info, err := s.find(ctx, job); err == nil {
			job = info.Spec.Name
		} else if strings.TrimSpace(job) == "" {
			return err
		} // one that was removed still has events
	}
	var after uint64
	if q.GetFollow() && q.GetSince() == nil {
		after = s.manager.LastEvent()
	}
	for e, err := range s.manager.Events(ctx, after, q.GetFollow()) {
		if err != nil {
			return err
		}
		switch {
		case !p.Root() && e.Owner != p.UID, e.Job == "" && !p.Root(), job != "" && e.Job != job, q.GetSince() != nil && e.At.Before(q.GetSince().AsTime()):
			continue
		}
		if err := stream.Send(&v1.EventsResponse{Event: s.eventMessage(&e)}); err != nil {
			return err
		}
	}
	return ctx.Err()
}
