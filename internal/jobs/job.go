package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
	"stasis/internal/schedule"
)

// job is one job.
type job struct {
	m    *Manager
	op   chan struct{} // full while an operation is under way
	kick chan struct{} // wakes keepTime

	shown atomic.Pointer[Info] // the job as it was when mu was last given back

	mu       guard
	revision uint64          // guarded by mu; of rec.Spec
	rec      db.Job          // guarded by mu, but for ID, Owner, Created and the spec's name, which never change
	cps      []db.Checkpoint // guarded by mu; the oldest first
	schedule schedule.Schedule
	due      time.Time          // guarded by mu; of the next checkpoint, zero: none
	shim     Shim               // guarded by mu; nil: none works
	run      int                // guarded by mu; the shim's number of the present run
	over     chan struct{}      // guarded by mu; closed at the end of the present run
	expected bool               // guarded by mu; an operation ends the run and sees to the rest
	dumping  context.CancelFunc // guarded by mu; ends the dump under way
	removed  bool               // guarded by mu
}

func (j *job) name() string { return j.rec.Spec.Name }

func (j *job) dir() string { return j.m.checkpointDir(j.rec.Owner, j.name()) }

func (j *job) mayBeSeenBy(user uint32) bool { return user == 0 || user == j.rec.Owner }

func (j *job) state() db.State {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.rec.State
}

// guard is the lock of what a job is. What holds it for writing has changed the job, and that is shown to everybody as it is given back; who
// only looks takes it by RLock.
type guard struct {
	sync.RWMutex
	changed func() // called while it is held for writing
}

func (g *guard) Unlock() {
	g.changed()
	g.RWMutex.Unlock()
}

// newJob makes a job of a record, which nobody knows of yet.
func newJob(m *Manager, rec db.Job, cps []db.Checkpoint) *job {
	j := &job{m: m, op: make(chan struct{}, 1), kick: make(chan struct{}, 1), rec: rec, cps: cps}
	j.schedule, _ = parseSchedule(&rec.Spec) // it was checked when the job was made
	j.mu.changed = j.show
	j.show()
	return j
}

// info is the job as the last change has left it. It never waits: while a change is being written to the disk, which can take its time, the
// job is as it was before.
func (j *job) info() Info { return *j.shown.Load() }

// show makes info give what is true now. With j.mu held.
func (j *job) show() {
	i := Info{Job: j.rec, Revision: j.revision, Dumping: j.dumping != nil, Checkpoints: len(j.cps)}
	for k := range j.cps {
		i.Bytes += j.cps[k].Bytes
	}
	if good := newestGood(j.cps); good != nil {
		last := *good
		i.Last = &last
	}
	if j.rec.State == db.StateRunning && j.schedule != nil {
		i.Next = j.due
	}
	j.shown.Store(&i)
	j.m.generation.Add(1) // in this order: who reads the number first never takes an old state for a new one
}

func newestGood(cps []db.Checkpoint) *db.Checkpoint {
	for i := len(cps) - 1; i >= 0; i-- {
		if cps[i].Bad == "" {
			return &cps[i]
		}
	}
	return nil
}

// event notes what has happened to the job.
func (j *job) event(kind, format string, args ...any) {
	j.tell(db.Event{Kind: kind, Text: fmt.Sprintf(format, args...)})
}

func (j *job) tell(e db.Event) {
	e.Job, e.JobID, e.Owner = j.name(), j.rec.ID, j.rec.Owner
	j.m.event(e)
}

// update changes the record and writes it down. What cannot be written is logged: the job must go on.
func (j *job) update(change func(*db.Job)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.removed {
		return
	}
	change(&j.rec)
	if err := j.m.db.PutJob(j.rec); err != nil {
		j.m.log.Error("the database cannot be written", "job", j.name(), "error", err)
	}
	j.wake()
}

// wake lets keepTime look again.
func (j *job) wake() {
	select {
	case j.kick <- struct{}{}:
	default:
	}
}

// begin waits for the operation under way and begins another.
func (j *job) begin(ctx context.Context) (end func(), err error) {
	select {
	case j.op <- struct{}{}:
		return func() { <-j.op }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("job %s: another operation is under way: %w", j.name(), ctx.Err())
	}
}

// interrupt begins an operation for which a dump under way is given up.
func (j *job) interrupt(ctx context.Context) (end func(), err error) {
	j.mu.RLock()
	if j.dumping != nil {
		j.dumping()
	}
	j.mu.RUnlock()
	return j.begin(ctx)
}

// adopt looks for what the job does now, after nobody has looked for a while.
func (j *job) adopt(ctx context.Context) {
	dir := j.m.shimDir(j.name())
	s, err := j.m.o.Runner.Connect(ctx, dir)
	if err == nil {
		now, statusErr := s.Status(ctx)
		switch {
		case statusErr == nil && now.Busy:
			j.m.work.Go(func() { j.adoptBegun(s) })
			return
		case statusErr == nil:
			j.adoptShim(s, now)
			return
		}
		err = statusErr
	}
	if !errors.Is(err, shim.ErrGone) {
		j.m.log.Error("the job's shim does not answer", "job", j.name(), "error", err)
	}
	j.mu.RLock()
	rec := j.rec
	j.mu.RUnlock()
	if !wasAlive(rec.State) {
		return
	}
	if s, now, ok := takeProcess(rec.PID, rec.Start); ok && rec.State == db.StateRunning && rec.Boot == shim.BootID() {
		if !rec.Managed {
			j.event(EventAdopted, "the job runs as process %d, but what held its terminal is gone: it has no log until it is restored", rec.PID)
		}
		j.running(s, now)
		return
	}
	last, err := j.m.o.Runner.LastStatus(dir)
	exit := &db.Exit{Code: -1, Lost: true, At: time.Now().UTC()}
	if err == nil && !last.Running && last.Exit != nil && !rec.Managed {
		exit = last.Exit
	}
	j.ended(exit)
}

// adoptBegun takes up a job whose shim is still about what the daemon before has asked it for: to start or to restore the job.
func (j *job) adoptBegun(s Shim) {
	end, err := j.begin(j.m.ctx)
	if err != nil {
		return
	}
	now, err := s.Status(j.m.ctx)
	for ; err == nil && now.Busy; now, err = s.Status(j.m.ctx) {
		select {
		case <-time.After(lookEvery):
		case <-j.m.ctx.Done():
		}
	}
	end()
	switch {
	case j.m.ctx.Err() != nil: // the next daemon sees to it
	case err != nil:
		j.adopt(j.m.ctx)
	default:
		j.adoptShim(s, now)
	}
}

func (j *job) adoptShim(s Shim, now shim.Status) {
	j.mu.RLock()
	state := j.rec.State
	j.mu.RUnlock()
	switch {
	case now.Running:
		j.event(EventAdopted, "the job runs as process %d and is looked after again", now.PID)
		j.running(s, now)
	case now.Run > 0 && now.Exit != nil && wasAlive(state):
		j.mu.Lock()
		j.shim, j.run = s, now.Run
		j.mu.Unlock()
		j.ended(now.Exit)
	case wasAlive(state):
		j.mu.Lock()
		j.shim = s
		j.mu.Unlock()
		j.ended(&db.Exit{Code: -1, Lost: true, At: time.Now().UTC()})
	default: // it ended, but nobody has told its shim to go
		_ = quit(s)
	}
}

// quit tells a shim to end, which it does at once.
func quit(s Shim) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s.Quit(ctx)
}

// wasAlive says whether a job in that state should have a process, or wait for one.
func wasAlive(s db.State) bool {
	switch s {
	case db.StateStarting, db.StateRunning, db.StateRestoring, db.StateBackoff:
		return true
	}
	return false
}

// running notes that a run has begun, or was found, and watches it.
func (j *job) running(s Shim, now shim.Status) {
	j.update(func(rec *db.Job) {
		rec.State, rec.PID, rec.Start, rec.Boot, rec.Exit = db.StateRunning, now.PID, now.Start, shim.BootID(), nil
		if rec.Started.IsZero() {
			rec.Started = time.Now().UTC()
		}
		over := make(chan struct{})
		j.shim, j.run, j.over, j.expected = s, now.Run, over, false
		if j.schedule != nil {
			j.due = j.schedule.Next(j.m.o.Now())
		}
		j.m.work.Go(func() { j.watch(s, now.Run, over) })
	})
}

// watch waits for the end of a run.
func (j *job) watch(s Shim, run int, over chan struct{}) {
	now, err := s.Wait(j.m.ctx, run)
	if j.m.ctx.Err() != nil {
		return
	}
	exit := now.Exit
	if err != nil || exit == nil || now.Run != run {
		exit = j.afterShim(s)
		if exit == nil {
			return // the job goes on without its shim
		}
	}
	j.mu.Lock()
	expected := j.expected
	j.rec.Exit = exit
	close(over) // in one step with the look at expected: see unexpect
	j.mu.Unlock()
	if !expected {
		j.ended(exit)
	}
}

// afterShim finds out about a run whose shim has gone without a word. It gives nil if the process is still there and is watched now.
func (j *job) afterShim(gone Shim) *db.Exit {
	j.mu.Lock()
	rec, expected := j.rec, j.expected
	j.shim = nil
	j.mu.Unlock()
	if _, managed := gone.(*process); !managed && !expected {
		if s, now, ok := takeProcess(rec.PID, rec.Start); ok {
			j.event(EventAdopted, "what held the job's terminal is gone, the job goes on as process %d: it has no log until it is restored", rec.PID)
			j.running(s, now)
			return nil
		}
	}
	return &db.Exit{Code: -1, Lost: true, At: time.Now().UTC()}
}

// ended decides what comes after the end of a run that nobody has asked for.
func (j *job) ended(exit *db.Exit) {
	j.mu.RLock()
	spec := j.rec.Spec
	j.mu.RUnlock()
	clean := exit.Clean()
	back := spec.Restart == db.RestartAlways || spec.Restart == db.RestartOnFailure && !clean
	state := db.StateFailed
	if clean {
		state = db.StateDone
	}
	if back {
		state = db.StateBackoff
	}
	j.update(func(rec *db.Job) {
		rec.State, rec.Exit, rec.PID, rec.Start = state, exit, 0, 0
	})
	j.tell(db.Event{Kind: EventExited, Text: "the job has ended " + shim.Describe(exit), Exit: exit})
	if back {
		j.m.work.Go(func() { j.bringBack(j.m.ctx, clean) })
		return
	}
	j.letShimGo()
}

// letShimGo ends the shim of a job that does not run. A log that is followed ends by the job's state, not by this.
func (j *job) letShimGo() {
	j.mu.Lock()
	s := j.shim
	j.shim = nil
	j.mu.Unlock()
	if s != nil {
		if err := quit(s); err != nil && !errors.Is(err, shim.ErrGone) {
			j.m.log.Warn("the job's shim does not end", "job", j.name(), "error", err)
		}
	}
}

// theShim gives the job's shim, or starts one.
func (j *job) theShim(ctx context.Context) (Shim, error) {
	j.mu.RLock()
	s := j.shim
	j.mu.RUnlock()
	if s != nil {
		if _, outside := s.(*process); !outside {
			if _, err := s.Status(ctx); err == nil {
				return s, nil
			}
		}
	}
	dir := j.m.shimDir(j.name())
	if s, err := j.m.o.Runner.Connect(ctx, dir); err == nil {
		return s, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the job's folder: %w", err)
	}
	return j.m.o.Runner.Launch(ctx, dir)
}
