package service

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/internal/config"
	"stasis/internal/jobs"
	"stasis/internal/jobs/db"
	"stasis/internal/peer"
	"stasis/internal/wire"
)

// idLength is how many digits the id of a job has.
const idLength = 16

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", stasis.ErrInput, fmt.Errorf(format, args...))
}

// specOf reads what a job is to be, on behalf of somebody.
func specOf(m *v1.JobSpec, p peer.Peer, c *config.Config) (db.Spec, error) {
	if m == nil {
		m = new(v1.JobSpec) // optional fields of a message that is not there cannot be looked at
	}
	spec := db.Spec{
		Name: m.GetName(), Argv: m.GetCommand(), Env: m.GetEnvironment(), Dir: m.GetDirectory(), UID: p.UID, GID: p.GID,
		Labels: m.GetLabels(), WithFiles: m.GetWithFiles(), Terminal: !m.GetNoTerminal(), Keep: keepOf(m.GetRetention()),
	}
	if m.Uid != nil || m.Gid != nil {
		if !p.Root() && (m.Uid != nil && m.GetUid() != p.UID || m.Gid != nil && m.GetGid() != p.GID) {
			return spec, fmt.Errorf("%w: to run as another user is root's", wire.ErrDenied)
		}
		spec.UID, spec.GID = m.GetUid(), m.GetGid()
	}
	if !p.Root() && len(spec.WithFiles) > 0 {
		return spec, fmt.Errorf("%w: with_files is root's: the files are read and written as root", wire.ErrDenied)
	}
	if size := m.GetTerminalSize(); size != nil {
		spec.Rows, spec.Cols = sizeOf(size)
	} else {
		spec.Rows, spec.Cols = 24, 80
	}
	var err error
	if spec.Every, spec.Cron, err = scheduleOf(m.GetSchedule()); err != nil {
		return spec, err
	}
	if err := restartOf(m.GetRestart(), &spec); err != nil {
		return spec, err
	}
	if spec.Settings, err = settingsOf(m.GetSettings(), c); err != nil {
		return spec, err
	}
	if m.GetMaxChain() < 0 {
		return spec, bad("max_chain is %d: it is a positive number, or 0 for the default", m.GetMaxChain())
	}
	spec.Settings.MaxChain = cmp.Or(int(m.GetMaxChain()), spec.Settings.MaxChain)
	return spec, nil
}

func sizeOf(s *v1.TerminalSize) (rows, cols uint16) {
	return uint16(min(s.GetRows(), math.MaxInt16)), uint16(min(s.GetColumns(), math.MaxInt16)) //nolint:gosec // bounded
}

func scheduleOf(s *v1.Schedule) (every time.Duration, cron string, err error) {
	if e := s.GetEvery(); e != nil {
		if !e.IsValid() || e.AsDuration() <= 0 {
			return 0, "", bad("every: it is a positive time")
		}
		every = e.AsDuration()
	}
	return every, s.GetCron(), nil
}

func restartOf(r *v1.Restart, spec *db.Spec) error {
	policy, known := map[v1.RestartPolicy]db.Restart{
		v1.RestartPolicy_RESTART_POLICY_UNSPECIFIED: db.RestartNever, v1.RestartPolicy_RESTART_POLICY_NO: db.RestartNever,
		v1.RestartPolicy_RESTART_POLICY_ON_FAILURE: db.RestartOnFailure, v1.RestartPolicy_RESTART_POLICY_ALWAYS: db.RestartAlways,
	}[r.GetPolicy()]
	if !known {
		return bad("restart policy %d is not known here: is the client newer than the daemon?", r.GetPolicy())
	}
	if r.GetDelay() != nil && !r.GetDelay().IsValid() {
		return bad("restart.delay is no time")
	}
	spec.Restart, spec.MaxRetries, spec.RestartDelay, spec.FromScratch = policy, int(r.GetMaxRetries()), r.GetDelay().AsDuration(), r.GetFromScratch()
	return nil
}

func keepOf(r *v1.Retention) db.Keep {
	return db.Keep{
		Last: int(r.GetKeepLast()), Hourly: int(r.GetKeepHourly()), Daily: int(r.GetKeepDaily()), Weekly: int(r.GetKeepWeekly()),
		Monthly: int(r.GetKeepMonthly()), Bytes: r.GetMaxBytes(),
	}
}

// settingsOf resolves the settings of dumps: what is not said is as configured now.
func settingsOf(m *v1.DumpSettings, c *config.Config) (db.Settings, error) {
	o, err := wire.DumpOptions(m, c)
	if err != nil {
		return db.Settings{}, err
	}
	return db.Settings{
		Streams: o.Streams, Compression: o.Compression, Level: o.Level, Engine: string(o.Engine), MaxRounds: o.MaxRounds,
		MaxPause: o.MaxPause, FinalBuffer: o.FinalBuffer, Nice: o.Nice, Bandwidth: o.Bandwidth, MaxChain: o.MaxChain, CRIU: o.CRIU,
	}, nil
}

// jobMessage describes a job.
func jobMessage(i *jobs.Info) *v1.Job {
	return jobMessageWith(i, specMessage(&i.Spec), lastMessage(i))
}

// lastMessage describes a job's newest checkpoint.
func lastMessage(i *jobs.Info) *v1.Checkpoint {
	if i.Last == nil {
		return nil
	}
	return checkpointMessage(i.Last, i.Owner)
}

func jobMessageWith(i *jobs.Info, spec *v1.JobSpec, last *v1.Checkpoint) *v1.Job {
	m := &v1.Job{
		Id: i.ID, Spec: spec, State: stateMessage(i), Pid: int32(i.PID), OwnerUid: i.Owner, //nolint:gosec // a pid
		Created: timestamppb.New(i.Created), Restores: int32(i.Restores), Failures: int32(i.Failures), //nolint:gosec // small
		Checkpoints: int32(i.Checkpoints), CheckpointBytes: i.Bytes, Managed: i.Managed, Message: i.Message, LastCheckpoint: last, //nolint:gosec // small
	}
	if !i.Started.IsZero() {
		m.Started = timestamppb.New(i.Started)
	}
	if !i.Next.IsZero() {
		m.NextCheckpoint = timestamppb.New(i.Next)
	}
	if i.Exit != nil {
		m.Ended = timestamppb.New(i.Exit.At)
		m.Exit = exitMessage(i.Exit)
	}
	return m
}

func exitMessage(e *db.Exit) *v1.ExitStatus {
	if e == nil || e.Lost {
		return nil
	}
	if e.Signal != "" {
		return &v1.ExitStatus{Signal: int32(unix.SignalNum(e.Signal))} //nolint:gosec // small
	}
	return &v1.ExitStatus{Code: int32(e.Code)} //nolint:gosec // small
}

func stateMessage(i *jobs.Info) v1.JobState {
	if i.State == db.StateRunning && i.Dumping {
		return v1.JobState_JOB_STATE_DUMPING
	}
	return map[db.State]v1.JobState{
		db.StateStarting: v1.JobState_JOB_STATE_STARTING, db.StateRunning: v1.JobState_JOB_STATE_RUNNING,
		db.StateRestoring: v1.JobState_JOB_STATE_RESTORING, db.StateBackoff: v1.JobState_JOB_STATE_BACKOFF,
		db.StateDone: v1.JobState_JOB_STATE_DONE, db.StateFailed: v1.JobState_JOB_STATE_FAILED,
		db.StateKilled: v1.JobState_JOB_STATE_KILLED, db.StateSuspended: v1.JobState_JOB_STATE_SUSPENDED,
	}[i.State]
}

func specMessage(s *db.Spec) *v1.JobSpec {
	m := &v1.JobSpec{
		Name: s.Name, Command: s.Argv, Directory: s.Dir, Environment: s.Env, WithFiles: s.WithFiles, Uid: &s.UID, Gid: &s.GID,
		NoTerminal: !s.Terminal, MaxChain: int32(s.Settings.MaxChain), Labels: s.Labels, //nolint:gosec // small
		Retention: &v1.Retention{
			KeepLast: int32(s.Keep.Last), KeepHourly: int32(s.Keep.Hourly), KeepDaily: int32(s.Keep.Daily), //nolint:gosec // small
			KeepWeekly: int32(s.Keep.Weekly), KeepMonthly: int32(s.Keep.Monthly), MaxBytes: s.Keep.Bytes, //nolint:gosec // small
		},
		Restart: &v1.Restart{
			Policy: map[db.Restart]v1.RestartPolicy{
				db.RestartNever: v1.RestartPolicy_RESTART_POLICY_NO, db.RestartOnFailure: v1.RestartPolicy_RESTART_POLICY_ON_FAILURE,
				db.RestartAlways: v1.RestartPolicy_RESTART_POLICY_ALWAYS,
			}[s.Restart],
			MaxRetries: int32(s.MaxRetries), FromScratch: s.FromScratch, //nolint:gosec // small
		},
	}
	if s.RestartDelay > 0 {
		m.Restart.Delay = durationpb.New(s.RestartDelay)
	}
	switch {
	case s.Every > 0:
		m.Schedule = &v1.Schedule{When: &v1.Schedule_Every{Every: durationpb.New(s.Every)}}
	case s.Cron != "":
		m.Schedule = &v1.Schedule{When: &v1.Schedule_Cron{Cron: s.Cron}}
	}
	return m
}

// checkpointMessage describes a checkpoint from what the manager knows of it, without a look at its folder.
func checkpointMessage(cp *db.Checkpoint, owner uint32) *v1.Checkpoint {
	return &v1.Checkpoint{
		Id: cp.ID, Name: fmt.Sprintf("%s-%d", cp.Job, cp.Seq), Dir: cp.Dir, Parent: cp.Parent, Kind: v1.CheckpointKind_CHECKPOINT_KIND_FULL,
		Created: timestamppb.New(cp.Created), RootPid: int32(cp.RootPID), OwnerUid: owner, Job: cp.Job, Bytes: cp.Bytes, //nolint:gosec // a pid
		Figures: &v1.Figures{
			Pause: durationpb.New(time.Duration(cp.PauseUS) * time.Microsecond), Took: durationpb.New(cp.Took), BytesMemory: cp.Memory,
			BytesStored: cp.Bytes, BytesReferenced: cp.Referenced,
		},
	}
}

var kinds = map[string]v1.EventKind{
	jobs.EventCreated: v1.EventKind_EVENT_KIND_CREATED, jobs.EventStarted: v1.EventKind_EVENT_KIND_STARTED,
	jobs.EventCheckpointed: v1.EventKind_EVENT_KIND_CHECKPOINTED, jobs.EventDumpFailed: v1.EventKind_EVENT_KIND_CHECKPOINT_FAILED,
	jobs.EventSkipped: v1.EventKind_EVENT_KIND_CHECKPOINT_SKIPPED, jobs.EventRestored: v1.EventKind_EVENT_KIND_RESTORED,
	jobs.EventRestoreFailed: v1.EventKind_EVENT_KIND_RESTORE_FAILED, jobs.EventExited: v1.EventKind_EVENT_KIND_EXITED,
	jobs.EventAdopted: v1.EventKind_EVENT_KIND_ADOPTED, jobs.EventPruned: v1.EventKind_EVENT_KIND_PRUNED,
	jobs.EventRemoved: v1.EventKind_EVENT_KIND_REMOVED, jobs.EventUpdated: v1.EventKind_EVENT_KIND_UPDATED,
	jobs.EventManaged: v1.EventKind_EVENT_KIND_MANAGED,
}

func (s *Service) eventMessage(e *db.Event) *v1.Event {
	m := &v1.Event{
		Sequence: int64(e.Seq), Time: timestamppb.New(e.At), Kind: kinds[e.Kind], JobId: e.JobID, Job: e.Job, Message: e.Text, //nolint:gosec // small
		Exit: exitMessage(e.Exit),
	}
	if e.Checkpoint != 0 {
		if list, err := s.manager.Checkpoints(e.Job); err == nil {
			if i := slices.IndexFunc(list, func(cp db.Checkpoint) bool { return cp.Seq == e.Checkpoint }); i >= 0 {
				m.Checkpoint = checkpointMessage(&list[i], e.Owner)
			}
		}
	}
	return m
}

func restoredMessage(r *jobs.RestoredJob, owner uint32) *v1.RestoreResult {
	m := &v1.RestoreResult{
		Pid: int32(r.PID), BytesMemory: r.Restored.Memory, Took: durationpb.New(r.Restored.Took), //nolint:gosec // a pid
		ToResume: durationpb.New(r.Restored.ToResume), Warnings: append(slices.Clone(r.Tried), r.Restored.Warnings...),
	}
	for _, pid := range r.Restored.PIDs {
		m.Pids = append(m.Pids, int32(pid)) //nolint:gosec // a pid
	}
	if r.Checkpoint.Seq != 0 {
		m.Checkpoint = checkpointMessage(&r.Checkpoint, owner)
	}
	return m
}
