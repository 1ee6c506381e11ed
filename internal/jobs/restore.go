package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"stasis"
	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
)

const (
	// healthyAfter is how long a run has to last to count as one that came to something.
	healthyAfter = 10 * time.Second
	// maxDelay bounds the pause between two attempts to bring a job back, unless the first is longer already.
	maxDelay = 5 * time.Minute
)

// bringBack brings a job back after its end, as often as it takes and is allowed. anew starts it from its beginning.
func (j *job) bringBack(ctx context.Context, anew bool) {
	end, err := j.begin(ctx) // a dump under way has just lost its process
	if err != nil {
		return
	}
	defer end()
	ctx, endSpan := j.span(ctx, "job.bring_back")
	attempts := 0
	defer func() {
		endSpan(nil, attribute.Int("stasis.attempts", attempts), attribute.String("stasis.job.state", string(j.state())))
	}()
	j.update(func(rec *db.Job) {
		if time.Since(rec.Started) >= healthyAfter {
			rec.Failures = 0
		}
	})
	for ctx.Err() == nil {
		j.mu.RLock()
		failures, state, spec := j.rec.Failures, j.rec.State, j.rec.Spec
		j.mu.RUnlock()
		if state != db.StateBackoff {
			return // somebody has ended or restored it meanwhile
		}
		if limit := cmp.Or(spec.MaxRetries, j.m.o.MaxRetries); failures >= limit {
			j.giveUp(limit)
			return
		}
		if !j.pause(ctx, delay(cmp.Or(spec.RestartDelay, j.m.o.RestartDelay), failures)) {
			return
		}
		j.update(func(rec *db.Job) { rec.Failures++ })
		attempts++
		if _, err := j.resume(ctx, anew, RestoreRequest{}); err == nil || ctx.Err() != nil {
			return
		}
	}
}

// delay is the pause before an attempt: none before the first, then more and more.
func delay(first time.Duration, failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	d := first
	for n := 1; n < failures && d < maxDelay; n++ {
		d *= 2
	}
	return min(d, max(first, maxDelay))
}

// pause waits, and says whether the job still waits to be brought back.
func (j *job) pause(ctx context.Context, d time.Duration) bool {
	for until := time.Now().Add(d); ctx.Err() == nil; {
		left := time.Until(until)
		if j.state() != db.StateBackoff {
			return false
		}
		if left <= 0 {
			return true
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(left, time.Second)): // a request to end it must not wait for minutes
		}
	}
	return false
}

func (j *job) giveUp(limit int) {
	text := fmt.Sprintf("it was tried %d times in a row to bring the job back: \"stasis restore job %s\" tries again", limit, j.name())
	j.update(func(rec *db.Job) { rec.State, rec.Message = db.StateFailed, text })
	j.event(EventRestoreFailed, "%s", text)
	j.letShimGo()
}

// RestoreRequest says what a job is brought back from, and how.
type RestoreRequest struct {
	At    string // number, folder or id of one of its checkpoints; "": the newest that is good
	Force bool
}

// RestoredJob tells how a job was brought back.
type RestoredJob struct {
	Checkpoint db.Checkpoint // Seq 0: it was started anew
	PID        int
	Restored   shim.Restored
	Tried      []string // checkpoints that failed before, and why
}

// Restore brings a job back from a checkpoint. One that runs is ended for it.
func (m *Manager) Restore(ctx context.Context, name string, r RestoreRequest) (*RestoredJob, error) {
	j, err := m.find(name)
	if err != nil {
		return nil, err
	}
	if _, err := j.candidates(r.At); err != nil {
		return nil, err
	}
	end, err := j.takeOver(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	alive := j.state() == db.StateRunning
	if alive {
		if err := j.verify(ctx, r.At); err != nil {
			return nil, fmt.Errorf("the job runs on: %w", err)
		}
	}
	if err := j.endRun(ctx, syscall.SIGKILL, true, 0); err != nil {
		return nil, err
	}
	j.update(func(rec *db.Job) { rec.Failures, rec.State, rec.PID, rec.Start = 0, db.StateRestoring, 0, 0 })
	ctx = context.WithoutCancel(ctx) // there is no way back now
	done, err := j.resume(ctx, false, r)
	if err != nil && alive && r.At != "" {
		// It ran, and it was ended for this: rather the newest checkpoint than none.
		if _, again := j.resume(ctx, false, RestoreRequest{Force: r.Force}); again == nil {
			return nil, fmt.Errorf("%w; the job is back from its newest checkpoint instead", err)
		}
	}
	if err != nil {
		j.update(func(rec *db.Job) {
			if wasAlive(rec.State) {
				rec.State, rec.PID, rec.Start = db.StateFailed, 0, 0
			}
		})
		j.letShimGo()
	}
	return done, err
}

// verify reads the checkpoint that a job that runs is to be ended for.
func (j *job) verify(ctx context.Context, at string) error {
	list, err := j.candidates(at)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("%w: job %s has no checkpoint: \"stasis dump job %s\" makes one", ErrState, j.name(), j.name())
	}
	if err := j.m.o.Engine.Verify(ctx, list[0].Dir); err != nil {
		return fmt.Errorf("checkpoint %d of job %s: %w", list[0].Seq, j.name(), err)
	}
	return nil
}

// takeOver begins an operation that what is under way has to make room for: a dump is given up, and so is waiting for a restart.
func (j *job) takeOver(ctx context.Context) (end func(), err error) {
	waited := false
	j.update(func(rec *db.Job) {
		if waited = rec.State == db.StateBackoff; waited {
			rec.State = db.StateFailed
		}
	})
	if end, err = j.interrupt(ctx); err == nil || !waited {
		return end, err
	}
	j.update(func(rec *db.Job) { rec.State = db.StateBackoff }) // as if nobody had asked
	exit := j.lastExit()
	j.m.work.Go(func() { j.bringBack(j.m.ctx, exit.Clean()) })
	return nil, err
}

// candidates lists the checkpoints to try, the best first. Those that failed before come last.
func (j *job) candidates(at string) ([]db.Checkpoint, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if at != "" {
		return j.pick(at)
	}
	var good, bad []db.Checkpoint
	for i := len(j.cps) - 1; i >= 0; i-- {
		if j.cps[i].Bad == "" {
			good = append(good, j.cps[i])
		} else {
			bad = append(bad, j.cps[i])
		}
	}
	return append(good, bad...), nil
}

// pick finds a checkpoint by its number, its name or the beginning of its id. With j.mu held.
func (j *job) pick(at string) ([]db.Checkpoint, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(at, j.name()+"-"), 10, 64)
	for _, cp := range j.cps {
		if err == nil && cp.Seq == n {
			return []db.Checkpoint{cp}, nil
		}
	}
	var found []db.Checkpoint
	for _, cp := range j.cps {
		if cp.Dir == at || len(at) >= 4 && strings.HasPrefix(cp.ID, at) {
			found = append(found, cp)
		}
	}
	switch len(found) {
	case 1:
		return found, nil
	case 0:
		return nil, fmt.Errorf("%w: job %s has no checkpoint %s: \"stasis checkpoints --job %s\" lists those that it has", stasis.ErrInput, j.name(), at, j.name())
	}
	return nil, fmt.Errorf("%w: %s begins the ids of several checkpoints: give more of it", stasis.ErrInput, at)
}

// triesAtOnce bounds how many checkpoints one attempt goes back.
const triesAtOnce = 5

// resume begins a run: from the best checkpoint that can be restored, or from the beginning. It is the operation under way, and the job
// does not run.
func (j *job) resume(ctx context.Context, anew bool, r RestoreRequest) (*RestoredJob, error) {
	if anew {
		return j.startAnew(ctx)
	}
	list, err := j.candidates(r.At)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return j.startAnew(ctx) // nothing was saved yet, so nothing is lost
	}
	var tried []string
	var failure error
	for i, cp := range list[:min(len(list), triesAtOnce)] {
		done, err := j.restoreFrom(ctx, cp, r)
		if err == nil {
			done.Tried = tried
			return done, nil
		}
		if failure == nil {
			failure = fmt.Errorf("job %s: checkpoint %d cannot be restored: %w", j.name(), cp.Seq, err)
		}
		if ctx.Err() != nil {
			return nil, failure
		}
		text := fmt.Sprintf("checkpoint %d could not be restored: %v", cp.Seq, err)
		if i+1 < min(len(list), triesAtOnce) {
			text += fmt.Sprintf("; trying the older checkpoint %d", list[i+1].Seq)
		}
		tried = append(tried, text)
		j.tell(db.Event{Kind: EventRestoreFailed, Checkpoint: cp.Seq, Text: text})
		if errors.Is(err, stasis.ErrDamaged) {
			j.markBad(cp.Seq, err)
		}
	}
	j.mu.RLock()
	fromScratch := j.rec.Spec.FromScratch
	j.mu.RUnlock()
	if fromScratch && r.At == "" {
		done, err := j.startAnew(ctx)
		if err == nil {
			done.Tried = tried
			return done, nil
		}
		failure = errors.Join(failure, err)
	}
	j.update(func(rec *db.Job) { rec.State, rec.Message = db.StateBackoff, failure.Error() })
	return nil, failure
}

// markBad notes that a checkpoint is damaged, so that it is not the first to be tried again.
func (j *job) markBad(seq uint64, why error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range j.cps {
		if j.cps[i].Seq != seq {
			continue
		}
		j.cps[i].Bad = why.Error()
		if err := j.m.db.PutCheckpoint(j.cps[i], j.rec); err != nil {
			j.m.log.Error("the database cannot be written", "job", j.name(), "error", err)
		}
		if err := j.writeRecord(&j.cps[i]); err != nil {
			j.m.log.Error("a checkpoint's record cannot be written", "job", j.name(), "error", err)
		}
	}
}

func (j *job) restoreFrom(ctx context.Context, cp db.Checkpoint, r RestoreRequest) (done *RestoredJob, err error) {
	ctx, end := j.span(ctx, "job.restore", attribute.Int64("stasis.checkpoint.seq", int64(cp.Seq)), attribute.String("stasis.checkpoint.id", cp.ID))
	defer func() {
		if err != nil {
			end(err)
			return
		}
		end(nil, attribute.Int("stasis.pid", done.PID), attribute.Int64("stasis.bytes_memory", done.Restored.Memory),
			attribute.Int64("stasis.resume_us", done.Restored.ToResume.Microseconds()))
	}()
	release, err := j.m.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	j.update(func(rec *db.Job) { rec.State = db.StateRestoring })
	s, err := j.theShim(ctx)
	if err != nil {
		return nil, err
	}
	if err := j.m.o.Engine.MayRestore(cp.Dir); err != nil {
		return nil, err
	}
	if err := j.putFilesBack(&cp); err != nil {
		return nil, err
	}
	j.mu.RLock()
	spec, scheduled := j.rec.Spec, j.schedule != nil
	j.mu.RUnlock()
	now, restored, err := s.Restore(ctx, shim.Restore{
		Dir: cp.Dir, Terminal: spec.Terminal, ConsoleFlags: cp.ConsoleFlags, CRIUPath: j.m.o.CRIUPath, Force: r.Force,
		UID: j.rec.Owner, GID: spec.GID, Track: scheduled && j.maxChain(&spec.Settings) != 1,
		Trace: trace.SpanFromContext(ctx).IsRecording(),
	})
	shim.Replay(ctx, stasis.Version, restored.Spans)
	if err != nil {
		if errors.Is(err, shim.ErrDamaged) {
			err = fmt.Errorf("%w: %w", stasis.ErrDamaged, err)
		}
		j.mu.Lock()
		j.shim = s
		j.mu.Unlock()
		return nil, err
	}
	j.begun(s, now, func(rec *db.Job) {
		rec.Parent, rec.Managed = cp.Seq, false
		rec.Restores++
	})
	j.tell(db.Event{
		Kind: EventRestored, Checkpoint: cp.Seq,
		Text: fmt.Sprintf("the job is back from checkpoint %d, of %s, as process %d", cp.Seq, cp.Created.Local().Format(time.DateTime), now.PID),
	})
	return &RestoredJob{Checkpoint: cp, PID: now.PID, Restored: restored}, nil
}

// maxChain is how many checkpoints a chain of the job may have.
func (j *job) maxChain(set *db.Settings) int { return cmp.Or(set.MaxChain, j.m.o.MaxChain) }

// begun notes a run that has just begun.
func (j *job) begun(s Shim, now shim.Status, change func(*db.Job)) {
	j.update(func(rec *db.Job) {
		rec.Started, rec.Message = time.Now().UTC(), ""
		change(rec)
	})
	j.running(s, now)
}

// startAnew starts the job's command.
func (j *job) startAnew(ctx context.Context) (_ *RestoredJob, err error) {
	var now shim.Status
	ctx, end := j.startSpan(ctx)
	defer func() { end(&now, err) }()
	j.mu.RLock()
	spec := j.rec.Spec
	j.mu.RUnlock()
	fail := func(err error) (*RestoredJob, error) {
		j.update(func(rec *db.Job) { rec.State, rec.Message = db.StateBackoff, err.Error() })
		j.event(EventRestoreFailed, "the job could not be started: %v", err)
		return nil, err
	}
	if len(spec.Argv) == 0 {
		return fail(fmt.Errorf("%w: it is not known what job %s was started with, and it has no checkpoint", ErrState, j.name()))
	}
	j.update(func(rec *db.Job) { rec.State = db.StateStarting })
	s, err := j.theShim(ctx)
	if err != nil {
		return fail(err)
	}
	now, err = s.Start(ctx, shim.Command{
		Argv: spec.Argv, Env: spec.Env, Dir: spec.Dir, UID: spec.UID, GID: spec.GID, Terminal: spec.Terminal,
	})
	if err != nil {
		j.mu.Lock()
		j.shim = s
		j.mu.Unlock()
		return fail(err)
	}
	j.begun(s, now, func(rec *db.Job) { rec.Parent, rec.Managed = 0, false })
	j.event(EventStarted, "the job was started as process %d", now.PID)
	return &RestoredJob{PID: now.PID}, nil
}

// endRun ends the present run, if there is one, as part of an operation. patience is how long the signal has before SIGKILL follows.
func (j *job) endRun(ctx context.Context, sig syscall.Signal, tree bool, patience time.Duration) error {
	j.mu.Lock()
	s, over, alive := j.shim, j.over, j.rec.State == db.StateRunning
	if alive {
		j.expected = true
	}
	j.mu.Unlock()
	if !alive || s == nil {
		return nil
	}
	err := s.Signal(ctx, sig, tree)
	if err == nil && sig != syscall.SIGKILL {
		if !waitOver(ctx, over, patience) {
			err = s.Signal(ctx, syscall.SIGKILL, true)
		}
	}
	if err == nil && !waitOver(ctx, over, killWithin) {
		err = fmt.Errorf("job %s was killed and does not end", j.name())
	}
	if err != nil {
		return j.unexpect(err)
	}
	return nil
}

// killWithin bounds the wait for the end of a killed job.
const killWithin = 20 * time.Second

func waitOver(ctx context.Context, over chan struct{}, limit time.Duration) bool {
	select {
	case <-over:
		return true
	case <-time.After(limit):
	case <-ctx.Done():
	}
	return false
}
