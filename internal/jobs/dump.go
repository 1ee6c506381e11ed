package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"stasis"
	"stasis/internal/image"
	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
	"stasis/internal/schedule"
)

// Why a checkpoint was made.
const (
	ReasonSchedule   = "schedule"
	ReasonRequest    = "request"
	ReasonStop       = "stop" // of the daemon
	ReasonEvacuation = "evacuation"
	ReasonShutdown   = "shutdown" // of the machine
)

// parseSchedule is nil for a job without one.
func parseSchedule(spec *db.Spec) (schedule.Schedule, error) {
	s, err := schedule.Parse(spec.Every, spec.Cron)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", stasis.ErrInput, err)
	}
	return s, nil
}

// keepTime makes the checkpoints that are due. One that is due while another operation is under way is skipped: two of one job
// would be of no use, and a queue of them would never end.
func (j *job) keepTime() {
	var skipped bool // the operation under way has already been said to be in the way
	for {
		j.mu.RLock()
		s, due, alive := j.schedule, j.due, j.rec.State == db.StateRunning
		removed := j.removed
		j.mu.RUnlock()
		if removed {
			return
		}
		var wait time.Duration = -1
		if s != nil && alive && !due.IsZero() {
			wait = min(max(0, due.Sub(j.m.o.Now())), lookAtClock)
		}
		if !j.sleep(wait) {
			if j.m.ctx.Err() != nil {
				return
			}
			continue // something has changed
		}
		now := j.m.o.Now()
		if due.After(now) {
			continue
		}
		next, missed := schedule.Missed(s, due, now)
		j.mu.Lock()
		if j.due.Equal(due) {
			j.due = next
		}
		j.mu.Unlock()
		if missed > 0 {
			count := strconv.Itoa(missed)
			if missed >= schedule.MostMissed {
				count = "at least " + count
			}
			j.event(EventSkipped, "%s checkpoints that were due were skipped: the machine slept, was too busy, or its clock was set", count)
		}
		skipped = j.tick(due, skipped)
	}
}

// lookAtClock bounds how long a schedule waits without a look at the clock. What counts for a cron line is the time of day, and that
// moves on while the machine sleeps, or is set; timers know nothing of either.
const lookAtClock = 30 * time.Second

// sleep waits for so long, or for good if that is negative. It is false where something has come in between.
func (j *job) sleep(d time.Duration) bool {
	var done <-chan time.Time
	if d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		done = timer.C
	}
	select {
	case <-done:
		return true
	case <-j.kick:
	case <-j.m.ctx.Done():
	}
	return false
}

// tick makes the checkpoint that is due now, unless an operation is under way.
func (j *job) tick(due time.Time, said bool) (skipped bool) {
	select {
	case j.op <- struct{}{}:
	default:
		if !said {
			j.event(EventSkipped, "the checkpoint due at %s was skipped: the one before it, or another operation, is still under way", due.Local().Format("15:04:05"))
		}
		return true
	}
	j.m.work.Go(func() {
		defer func() { <-j.op }()
		if j.state() == db.StateRunning {
			_, _ = j.dump(j.m.ctx, DumpRequest{reason: ReasonSchedule}) // the event says how it went
		}
	})
	return false
}

// DumpRequest says how a checkpoint of a job is made, where not as usual.
type DumpRequest struct {
	After    stasis.After // "": it runs on
	Full     bool         // builds on no other
	Settings *db.Settings // nil: the job's
	Progress func(stasis.Progress)

	reason string
}

// Dumped is a new checkpoint of a job.
type Dumped struct {
	db.Checkpoint
	Result *stasis.DumpResult
}

// Dump makes a checkpoint of a job now.
func (m *Manager) Dump(ctx context.Context, name string, r DumpRequest) (*Dumped, error) {
	j, err := m.find(name)
	if err != nil {
		return nil, err
	}
	end, err := j.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if state := j.state(); state != db.StateRunning {
		return nil, fmt.Errorf("%w: job %s is %s, and only one that runs can be dumped", ErrState, name, state)
	}
	r.reason = cmp.Or(r.reason, ReasonRequest)
	return j.dump(ctx, r)
}

// dump makes a checkpoint, as the operation under way.
func (j *job) dump(ctx context.Context, r DumpRequest) (dumped *Dumped, err error) {
	ctx, end := j.span(ctx, "job.dump", attribute.String("stasis.reason", r.reason))
	var seq uint64
	defer func() { end(err, attribute.Int64("stasis.checkpoint.seq", int64(seq))) }()
	asked := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	j.mu.Lock()
	j.dumping = cancel
	j.rec.LastSeq++
	rec, s := j.rec, j.shim
	seq = rec.LastSeq
	ending := r.After == stasis.AfterKill
	j.expected = ending
	over := j.over
	j.mu.Unlock()
	defer func() {
		j.mu.Lock()
		j.dumping = nil
		j.mu.Unlock()
	}()
	dumped, err = j.dumpAs(ctx, r, rec, s)
	if err != nil && !ending && j.hasEnded(&rec, over) {
		exit := j.lastExit()
		j.event(EventSkipped, "checkpoint %d was not made: the job has just ended %s", seq, shim.Describe(exit))
		return nil, &endedError{job: j.name(), exit: exit}
	}
	if err != nil {
		j.dumpFailed(seq, err, ctx.Err() != nil && asked.Err() == nil, ending)
		return nil, err
	}
	j.record(dumped, r)
	if ending {
		select {
		case <-over: // it was killed before the dump returned
		case <-j.m.ctx.Done(): // the next manager finds it so
			return dumped, nil
		}
		j.update(func(rec *db.Job) {
			rec.State, rec.PID, rec.Start = db.StateSuspended, 0, 0
			if r.reason == ReasonShutdown && rec.Spec.Restart != db.RestartNever {
				rec.State = db.StateBackoff // the next manager finds it so, and brings it back
			}
		})
		j.letShimGo()
	}
	j.prune(ctx)
	return dumped, nil
}

// endedError says that a job ended by itself before its checkpoint was made. That is no failure of the checkpoint.
type endedError struct {
	job  string
	exit *db.Exit
}

func (e *endedError) Error() string {
	return fmt.Sprintf("job %s has just ended %s: there is nothing to dump any more", e.job, shim.Describe(e.exit))
}

func (*endedError) Unwrap() error { return ErrState }

// noticedWithin bounds how long it takes until the end of a job's first process is the end of its run: what it has left behind is killed, and its
// last output read.
const noticedWithin = 15 * time.Second

// hasEnded says whether a job's run has ended while it was dumped, for which it waits until that is known to everybody.
func (j *job) hasEnded(rec *db.Job, over chan struct{}) bool {
	return !j.m.o.Runner.Alive(rec.PID, rec.Start) && waitOver(j.m.ctx, over, noticedWithin)
}

func (j *job) dumpAs(ctx context.Context, r DumpRequest, rec db.Job, s Shim) (*Dumped, error) {
	release, err := j.m.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := os.MkdirAll(j.dir(), 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the job's checkpoints: %w", err)
	}
	if err := j.writeIdentity(); err != nil {
		return nil, err
	}
	cp := db.Checkpoint{Job: j.name(), Seq: rec.LastSeq, Dir: filepath.Join(j.dir(), number(rec.LastSeq)), Reason: r.reason}
	consoles, err := consolesOf(ctx, s, rec.PID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", stasis.ErrProcess, err)
	}
	o := j.dumpOptions(r, rec, consoles, &cp)
	owner := User{rec.Owner, rec.Spec.GID}
	begun := time.Now()
	result, err := j.m.o.Engine.Dump(ctx, owner, o, consoles)
	if err != nil && o.Parent != "" && ctx.Err() == nil && (errors.Is(err, stasis.ErrInput) || errors.Is(err, stasis.ErrDamaged)) {
		// The parent may have been deleted or damaged behind our back; a checkpoint without one needs nobody.
		because := err
		o.Parent = ""
		if result, err = j.m.o.Engine.Dump(ctx, owner, o, consoles); err == nil {
			result.Notes = append(result.Notes, fmt.Sprintf("it begins a new chain: %v", because))
		}
	}
	if err != nil {
		j.dropBeside(&cp)
		return nil, err
	}
	fillIn(&cp, result.Manifest, time.Since(begun))
	return &Dumped{cp, result}, nil
}

// number names the folder of a checkpoint.
func number(seq uint64) string { return fmt.Sprintf("%06d", seq) }

// dumpOptions are the options of a dump; what is found out during the freeze is put into cp.
func (j *job) dumpOptions(r DumpRequest, rec db.Job, consoles []string, cp *db.Checkpoint) stasis.DumpOptions {
	set := rec.Spec.Settings
	if r.Settings != nil {
		set = *r.Settings
	}
	o := stasis.DumpOptions{
		PID: rec.PID, Dir: cp.Dir, Name: fmt.Sprintf("%s-%d", j.name(), cp.Seq), After: cmp.Or(r.After, stasis.AfterRun),
		Streams: set.Streams, Compression: set.Compression, Level: set.Level, Engine: stasis.Engine(set.Engine), CRIU: set.CRIU,
		MaxRounds: set.MaxRounds, MaxPause: set.MaxPause, FinalBuffer: set.FinalBuffer, Nice: set.Nice, Bandwidth: set.Bandwidth,
		MaxChain: j.maxChain(&set), CRIUPath: j.m.o.CRIUPath, Progress: r.Progress,
	}
	j.mu.RLock()
	scheduled := j.schedule != nil
	if rec.Parent != 0 && !r.Full && o.MaxChain != 1 {
		o.Parent = j.dirOf(rec.Parent)
	}
	j.mu.RUnlock()
	// Between checkpoints on schedule the kernel notes what is written. Without a schedule that would cost for nothing.
	o.Track = scheduled && o.MaxChain != 1 && o.After == stasis.AfterRun
	o.AtStep = func(step stasis.Step) error {
		switch step {
		case stasis.StepState:
			j.dropBeside(cp) // of an attempt before
			cp.ConsoleFlags = consoleFlags(rec.PID, consoles)
			if err := j.keepFiles(cp, rec.Spec.WithFiles); err != nil {
				return err
			}
			return announce(cp)
		case stasis.StepPublish: // once the checkpoint exists, they belong to it
			return syncFiles(cp)
		}
		return nil
	}
	return o
}

// dirOf is the folder of a checkpoint that is known, or "". With j.mu held.
func (j *job) dirOf(seq uint64) string {
	for i := range j.cps {
		if j.cps[i].Seq == seq {
			return j.cps[i].Dir
		}
	}
	return ""
}

// fillIn puts what the manifest says into a record.
func fillIn(cp *db.Checkpoint, m *image.Manifest, took time.Duration) {
	cp.ID, cp.Parent, cp.Created, cp.PauseUS, cp.RootPID, cp.Took = m.ID, m.Parent, m.Created, m.Figures.PauseUS, m.RootPID, took
	cp.Memory, cp.Referenced, cp.Bytes = m.Figures.BytesMemory, m.Figures.BytesReferenced, 0
	for _, s := range m.Shards {
		cp.Bytes += s.Size
	}
}

// record notes a new checkpoint.
func (j *job) record(d *Dumped, r DumpRequest) {
	if err := j.writeRecord(&d.Checkpoint); err != nil {
		d.Result.Notes = append(d.Result.Notes, err.Error())
		j.m.log.Error("a checkpoint's record cannot be written", "job", j.name(), "error", err)
	}
	j.mu.Lock()
	j.cps = append(j.cps, d.Checkpoint)
	j.rec.Parent, j.rec.Failures, j.rec.Message = d.Seq, 0, ""
	if err := j.m.db.PutCheckpoint(d.Checkpoint, j.rec); err != nil {
		j.m.log.Error("the database cannot be written", "job", j.name(), "error", err)
	}
	j.mu.Unlock()
	j.tell(db.Event{
		Kind: EventCheckpointed, Checkpoint: d.Seq,
		Text: fmt.Sprintf("checkpoint %d (%s): the job stood still for %.1f ms", d.Seq, r.reason, float64(d.PauseUS)/1000),
	})
}

// dumpFailed says why there is no checkpoint; givenUp: because somebody wants something else of the job.
func (j *job) dumpFailed(seq uint64, err error, givenUp, ending bool) {
	if text := fmt.Sprintf("checkpoint %d failed: %v", seq, err); givenUp {
		j.event(EventSkipped, "checkpoint %d was given up: the job is to be ended, or restored", seq)
	} else {
		j.update(func(rec *db.Job) { rec.Message = text })
		j.event(EventDumpFailed, "%s", text)
	}
	if !ending {
		return
	}
	if j.unexpect(err) == nil { // it ended all the same, while nobody else looked
		j.ended(j.lastExit())
	}
}

// prune deletes the checkpoints that the job's policy does not keep.
func (j *job) prune(ctx context.Context) {
	j.mu.RLock()
	keep := j.rec.Spec.Keep
	if keep == (db.Keep{}) {
		keep = j.m.o.Keep
	}
	needed := map[uint64]bool{j.rec.Parent: true}
	if good := newestGood(j.cps); good != nil {
		needed[good.Seq] = true
	}
	gone := surplus(j.cps, keep, needed)
	j.mu.RUnlock()
	if len(gone) == 0 {
		return
	}
	if err := j.remove(ctx, gone); err != nil {
		j.event(EventPruned, "old checkpoints could not be deleted: %v", err)
		return
	}
	if len(gone) == 1 {
		j.event(EventPruned, "checkpoint %d was deleted, as the job's rules say", gone[0].Seq)
		return
	}
	j.event(EventPruned, "%d old checkpoints were deleted, as the job's rules say", len(gone))
}

// remove deletes checkpoints and what is known of them.
func (j *job) remove(ctx context.Context, gone []db.Checkpoint) error {
	var dirs []string
	var seqs []uint64
	for _, cp := range gone {
		dirs, seqs = append(dirs, cp.Dir), append(seqs, cp.Seq)
	}
	if err := j.m.o.Engine.Remove(ctx, dirs); err != nil {
		return err
	}
	for i := range gone {
		j.dropBeside(&gone[i])
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var left []db.Checkpoint
	for _, cp := range j.cps {
		if slices.Contains(seqs, cp.Seq) {
			continue
		}
		left = append(left, cp)
	}
	j.cps = left
	return j.m.db.DeleteCheckpoints(j.name(), seqs...)
}
