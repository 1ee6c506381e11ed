package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/catalog"
	"stasis/internal/chain"
	"stasis/internal/peer"
	"stasis/internal/proc"
	"stasis/internal/relay"
	"stasis/internal/store"
	"stasis/internal/wire"
)

// checkpointService dumps, restores, and looks after checkpoints.
type checkpointService struct{ daemon *Daemon }

var _ stasisv1connect.CheckpointServiceHandler = (*checkpointService)(nil)

// Dump makes a checkpoint of a process tree.
func (s *checkpointService) Dump(ctx context.Context, request *connect.Request[v1.DumpRequest], stream *connect.ServerStream[v1.DumpResponse]) error {
	who, err := caller(ctx)
	if err != nil {
		return err
	}
	q := request.Msg
	o, err := wire.DumpOptions(q.GetSettings(), s.daemon.opts.Config)
	if err != nil {
		return err
	}
	if o.PID, err = pidOf(q.GetPid()); err != nil {
		return err
	}
	if o.After, err = wire.After(q.GetAfter(), stasis.AfterKill); err != nil {
		return err
	}
	if o.Dir, o.Name, err = s.placeOf(who, o.PID, q.GetDir(), q.GetName()); err != nil {
		return err
	}
	if o.Parent, err = s.parentOf(who, q.GetParent()); err != nil {
		return err
	}
	return s.dump(ctx, who, stream, func(ctx context.Context, report func(stasis.Progress)) (*stasis.DumpResult, error) {
		o.Progress = report
		return s.daemon.engine.DumpFor(ctx, who, o)
	})
}

// PreDump copies the memory of a process tree.
func (s *checkpointService) PreDump(ctx context.Context, request *connect.Request[v1.PreDumpRequest], stream *connect.ServerStream[v1.DumpResponse]) error {
	who, err := caller(ctx)
	if err != nil {
		return err
	}
	q := request.Msg
	from, err := wire.DumpOptions(q.GetSettings(), s.daemon.opts.Config)
	if err != nil {
		return err
	}
	o := stasis.PreDumpOptions{Streams: from.Streams, Compression: from.Compression, Level: from.Level, MaxRounds: from.MaxRounds}
	if o.PID, err = pidOf(q.GetPid()); err != nil {
		return err
	}
	if o.Dir, o.Name, err = s.placeOf(who, o.PID, q.GetDir(), q.GetName()); err != nil {
		return err
	}
	if o.Parent, err = s.parentOf(who, q.GetParent()); err != nil {
		return err
	}
	return s.dump(ctx, who, stream, func(ctx context.Context, report func(stasis.Progress)) (*stasis.DumpResult, error) {
		o.Progress = report
		return s.daemon.engine.PreDumpFor(ctx, who, o)
	})
}

func (s *checkpointService) dump(ctx context.Context, who peer.Peer, stream *connect.ServerStream[v1.DumpResponse],
	work func(context.Context, func(stasis.Progress)) (*stasis.DumpResult, error),
) error {
	begun := time.Now()
	result, err := relay.Progress(ctx, func(p stasis.Progress) error {
		return stream.Send(&v1.DumpResponse{Event: &v1.DumpResponse_Progress{Progress: wire.Progress(p)}})
	}, work)
	if err != nil {
		return err
	}
	entry, err := s.daemon.engine.Catalog.Find(0, result.Dir)
	if err != nil { // deleted since
		entry = wire.EntryOf(result, who.UID)
	}
	s.daemon.log.Info("dumped", "checkpoint", result.Dir, "id", result.Manifest.ID, "pid", result.Manifest.RootPID, "peer", who.String(),
		slog.Duration("pause", time.Duration(result.Manifest.Figures.PauseUS)*time.Microsecond), "bytes", entry.Bytes)
	return stream.Send(&v1.DumpResponse{Event: &v1.DumpResponse_Result{Result: wire.DumpResult(result, entry, time.Since(begun))}})
}

func pidOf(pid int32) (int, error) {
	switch {
	case pid <= 0:
		return 0, fmt.Errorf("%w: process id %d: it must be greater than 0", stasis.ErrInput, pid)
	case pid == 1:
		return 0, fmt.Errorf("%w: process 1 is what this machine runs under: choose another", stasis.ErrInput)
	case int(pid) == os.Getpid():
		return 0, fmt.Errorf("%w: process %d is the daemon", stasis.ErrInput, pid)
	}
	return int(pid), nil
}

// placeOf decides where a checkpoint goes, and makes the folder above it.
func (s *checkpointService) placeOf(who peer.Peer, pid int, dir, name string) (path, called string, err error) {
	switch {
	case dir != "" && !who.Root():
		return "", "", fmt.Errorf("%w: folders are root's: say name, and not dir", wire.ErrDenied)
	case dir != "":
		if !filepath.IsAbs(dir) {
			return "", "", fmt.Errorf("%w: dir %q is no absolute path", stasis.ErrInput, dir)
		}
		dir = filepath.Clean(dir)
		if _, err := os.Stat(filepath.Dir(dir)); err != nil {
			return "", "", fmt.Errorf("%w: the folder above dir: %w", stasis.ErrInput, err)
		}
		return dir, name, nil
	}
	home, err := s.daemon.engine.Catalog.MakeHome(who.UID, "")
	if err != nil {
		return "", "", err
	}
	if name == "" {
		name = newName(home, pid)
	} else if err := catalog.CheckName(name); err != nil {
		return "", "", fmt.Errorf("%w: %w", stasis.ErrInput, err)
	}
	return filepath.Join(home, name), name, nil
}

// newName makes a name of the command and the time, with a number where that is taken.
func newName(home string, pid int) string {
	comm := "process"
	if task, err := proc.ReadTask(pid); err == nil && catalog.CheckName(task.Comm) == nil {
		comm = task.Comm
	}
	base := comm + "-" + time.Now().UTC().Format("20060102T150405")
	name := base
	for n := 2; ; n++ {
		if _, err := os.Lstat(filepath.Join(home, name)); err != nil {
			return name
		}
		name = base + "-" + strconv.Itoa(n)
	}
}

func (s *checkpointService) parentOf(who peer.Peer, ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	e, err := s.daemon.engine.Catalog.Find(who.UID, ref)
	if err != nil {
		return "", err
	}
	return e.Dir, nil
}

// Restore brings a process tree back. It becomes a child of the daemon, which waits for its end.
func (s *checkpointService) Restore(ctx context.Context, request *connect.Request[v1.RestoreRequest], stream *connect.ServerStream[v1.RestoreResponse]) error {
	who, err := caller(ctx)
	if err != nil {
		return err
	}
	q := request.Msg
	entry, err := s.daemon.engine.Catalog.Find(who.UID, q.GetCheckpoint())
	if err != nil {
		return err
	}
	resumed := make(chan int, 1)
	told := false
	tell := func() error {
		select {
		case pid := <-resumed:
			told = true
			return stream.Send(&v1.RestoreResponse{Event: &v1.RestoreResponse_Resumed{Resumed: &v1.Resumed{Pid: int32(pid)}}})
		default:
			return nil
		}
	}
	result, err := relay.Progress(ctx, func(p stasis.Progress) error {
		if err := tell(); err != nil {
			return err
		}
		return stream.Send(&v1.RestoreResponse{Event: &v1.RestoreResponse_Progress{Progress: wire.Progress(p)}})
	}, func(ctx context.Context, report func(stasis.Progress)) (*stasis.RestoreResult, error) {
		return s.daemon.engine.RestoreFor(ctx, who, stasis.RestoreOptions{
			Dir: entry.Dir, Streams: int(q.GetStreams()), Lazy: q.GetLazy(), Force: q.GetForce(), Progress: report,
			Resumed: func(r *stasis.RestoreResult) {
				resumed <- r.PID
				report(stasis.Progress{Step: stasis.StepResume})
			},
		})
	})
	if err != nil {
		return err
	}
	go s.daemon.reap(result.PID)
	s.daemon.log.Info("restored", "checkpoint", entry.Dir, "id", entry.Manifest.ID, "pid", result.PID, "peer", who.String(), "took", result.Took)
	if !told {
		if err := tell(); err != nil {
			return err
		}
	}
	return stream.Send(&v1.RestoreResponse{Event: &v1.RestoreResponse_Result{Result: wire.RestoreResult(result, entry)}})
}

// reap waits for a restored process, so that it leaves no zombie. When the daemon ends, init takes over.
func (d *Daemon) reap(pid int) {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil {
			d.log.Info("a restored process has ended", "pid", pid, "code", status.ExitStatus(), "signal", status.Signal())
		}
		return
	}
}

// List gives one page of the checkpoints that the caller may see. A token is the id of the last one before the page.
func (s *checkpointService) List(ctx context.Context, request *connect.Request[v1.ListCheckpointsRequest]) (*connect.Response[v1.ListCheckpointsResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	q := request.Msg
	size, err := wire.PageSize(q.GetPageSize())
	if err != nil {
		return nil, err
	}
	page, err := s.daemon.lists.answer(s.daemon.engine.Catalog, who, q, size)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(page), nil
}

// Get describes one checkpoint.
func (s *checkpointService) Get(ctx context.Context, request *connect.Request[v1.GetCheckpointRequest]) (*connect.Response[v1.GetCheckpointResponse], error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	entry, err := s.daemon.engine.Catalog.Find(who.UID, request.Msg.GetCheckpoint())
	if err != nil {
		return nil, err
	}
	folder, err := store.OpenFolder(entry.Dir)
	if err != nil {
		return nil, err
	}
	manifest, err := folder.Manifest()
	if err != nil {
		return nil, err
	}
	m := wire.Checkpoint(entry)
	m.ChainLength = s.daemon.lists.chainLength(s.daemon.engine.Catalog.List(), entry)
	return connect.NewResponse(&v1.GetCheckpointResponse{Checkpoint: m, Manifest: manifest}), nil
}

// Verify reads every byte of a checkpoint.
func (s *checkpointService) Verify(ctx context.Context, request *connect.Request[v1.VerifyRequest], stream *connect.ServerStream[v1.VerifyResponse]) error {
	who, err := caller(ctx)
	if err != nil {
		return err
	}
	entry, err := s.daemon.engine.Catalog.Find(who.UID, request.Msg.GetCheckpoint())
	if err != nil {
		return err
	}
	held, err := chain.LockShared(ctx, entry.Dir)
	if err != nil {
		return busyOr(err)
	}
	defer held.Unlock() //nolint:errcheck // closing a folder loses nothing
	checkpoint, err := held.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", stasis.ErrDamaged, err)
	}
	defer checkpoint.Close()
	_, err = relay.Progress(ctx, func(p stasis.Progress) error {
		return stream.Send(&v1.VerifyResponse{Event: &v1.VerifyResponse_Progress{Progress: wire.Progress(p)}})
	}, func(ctx context.Context, report func(stasis.Progress)) (struct{}, error) {
		// One worker for two CPUs: a check must not starve the machine.
		return struct{}{}, checkpoint.Verify(ctx, max(1, runtime.NumCPU()/2), func(done, total int64) {
			report(stasis.Progress{Step: "verify", Done: done, Total: total})
		})
	})
	if err != nil {
		return err
	}
	return stream.Send(&v1.VerifyResponse{Event: &v1.VerifyResponse_Result{Result: &v1.VerifyResult{
		Checkpoint: wire.Checkpoint(entry), Bytes: entry.Bytes, Blocks: int64(checkpoint.Blocks()),
	}}})
}
