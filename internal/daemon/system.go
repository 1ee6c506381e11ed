package daemon

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/criu"
	"stasis/internal/health"
	"stasis/internal/image"
	"stasis/internal/peer"
	"stasis/internal/trust"
	"stasis/internal/wire"
)

// APIVersion is the version of the API: the last part of the name of its package, and the number of its last addition.
const APIVersion = "v1.2"

// systemService tells about the daemon and its machine.
type systemService struct{ daemon *Daemon }

var _ stasisv1connect.SystemServiceHandler = (*systemService)(nil)

// caller is who calls; without the gate in front nobody may do anything.
func caller(ctx context.Context) (peer.Peer, error) {
	who, ok := peer.From(ctx)
	if !ok {
		return who, fmt.Errorf("%w: nobody knows who calls", wire.ErrDenied)
	}
	return who, nil
}

// rootCalls refuses everybody else.
func rootCalls(ctx context.Context, what string) error {
	who, err := caller(ctx)
	if err == nil && !who.Root() {
		err = fmt.Errorf("%w: %s is root's", wire.ErrDenied, what)
	}
	return err
}

// Version says which versions work together here.
func (s *systemService) Version(ctx context.Context, _ *connect.Request[v1.VersionRequest]) (*connect.Response[v1.VersionResponse], error) {
	v := &v1.VersionResponse{Stasis: stasis.Version, Api: APIVersion, Format: image.FormatVersion, Go: runtime.Version()}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		v.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if found, err := criu.Find(ctx, s.daemon.opts.CRIUPath); err == nil {
		v.Criu = found.VersionString()
	}
	return connect.NewResponse(v), nil
}

// Status says what the daemon does.
func (s *systemService) Status(ctx context.Context, _ *connect.Request[v1.StatusRequest]) (*connect.Response[v1.StatusResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	dumps, restores := s.daemon.engine.Busy()
	all, running := s.daemon.countJobs(who.UID)
	status := &v1.StatusResponse{
		Pid: int32(os.Getpid()), Started: timestamppb.New(s.daemon.begun), OnDemand: s.daemon.opts.OnDemand,
		Dumps: int32(dumps), Restores: int32(restores), Jobs: int32(all), JobsRunning: int32(running),
		CallerUid: who.UID, CheckpointDir: s.daemon.engine.Catalog.Dir(),
	}
	if names := s.daemon.addresses.Load(); names != nil {
		status.Addresses = *names
		if page := s.daemon.browsers.served(); page != "" {
			status.Addresses = append(slices.Clone(status.Addresses), "http://"+page)
		}
	}
	for _, e := range s.daemon.engine.Catalog.List() {
		if who.May(e.Owner) {
			status.Checkpoints++
		}
	}
	return connect.NewResponse(status), nil
}

// Check looks at every part that dumps and restores need.
func (s *systemService) Check(ctx context.Context, request *connect.Request[v1.CheckRequest]) (*connect.Response[v1.CheckResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	var results []health.Result
	switch pid := int(request.Msg.GetPid()); {
	case pid < 0:
		return nil, fmt.Errorf("%w: process id %d", stasis.ErrInput, pid)
	case pid > 0 && request.Msg.GetFull():
		return nil, fmt.Errorf("%w: full is about the machine, and pid about one process: choose one", stasis.ErrInput)
	case pid > 0:
		if !who.Root() {
			if err := trust.Tree(pid, trust.User{UID: who.UID, GID: who.GID}); err != nil {
				return nil, fmt.Errorf("%w: %w", wire.ErrDenied, err)
			}
		}
		results = s.daemon.opts.Process(ctx, pid)
	default:
		results = s.daemon.opts.Machine(ctx, s.daemon.opts.CRIUPath)
		if request.Msg.GetFull() {
			if err := rootCalls(ctx, "a full check"); err != nil {
				return nil, err
			}
			results = append(results, s.daemon.opts.Full(ctx, s.daemon.engine)...)
		}
		results = append(results, s.daemon.checkItself()...)
	}
	return connect.NewResponse(checkResponse(results)), nil
}

func checkResponse(results []health.Result) *v1.CheckResponse {
	response := &v1.CheckResponse{Ok: true}
	for _, r := range results {
		status := map[health.Status]v1.CheckStatus{
			health.OK: v1.CheckStatus_CHECK_STATUS_OK, health.Warn: v1.CheckStatus_CHECK_STATUS_WARN, health.Fail: v1.CheckStatus_CHECK_STATUS_FAIL,
		}[r.Status]
		response.Ok = response.Ok && r.Status != health.Fail
		response.Results = append(response.Results, &v1.CheckResult{Name: r.Name, Status: status, Detail: r.Detail, Remedy: r.Remedy})
	}
	return response
}

// Config gives each setting and where it came from. It names files and addresses, so it is root's.
func (s *systemService) Config(ctx context.Context, _ *connect.Request[v1.ConfigRequest]) (*connect.Response[v1.ConfigResponse], error) {
	if err := rootCalls(ctx, "the configuration"); err != nil {
		return nil, err
	}
	response := new(v1.ConfigResponse)
	for _, v := range s.daemon.opts.Config.Values() {
		response.Values = append(response.Values, &v1.ConfigValue{Key: v.Key, Value: v.Value, Origin: v.Origin, Help: v.Help})
	}
	return connect.NewResponse(response), nil
}

// Stop ends the daemon.
func (s *systemService) Stop(ctx context.Context, _ *connect.Request[v1.StopRequest]) (*connect.Response[v1.StopResponse], error) {
	if err := rootCalls(ctx, "to stop the daemon"); err != nil {
		return nil, err
	}
	s.daemon.log.Info("asked to stop")
	s.daemon.Stop()
	return connect.NewResponse(new(v1.StopResponse)), nil
}
