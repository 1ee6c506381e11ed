package jobs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"stasis"
	"stasis/internal/jobs/db"
)

// Outcome is how it went with one job.
type Outcome struct {
	Job        Info
	Safe       bool           // there is a checkpoint that was begun after the request, or the job does not run
	Checkpoint *db.Checkpoint // that one; where the job is not safe, its newest good one
	Err        error          // why it is not safe
}

type evacuation struct {
	reason string
	after  stasis.After
}

// Evacuate makes all jobs safe within a deadline, those of which a user may dispose, and of these the named ones unless none is named. It
// tells of each job as soon as it is known how it went; tell is called by one goroutine at a time.
func (m *Manager) Evacuate(ctx context.Context, deadline time.Duration, after stasis.After, user uint32, names []string, tell func(Outcome)) error {
	if deadline <= 0 {
		return fmt.Errorf("%w: within what time has it to be done? Give a deadline, such as 30s", stasis.ErrInput)
	}
	var chosen []*job
	for _, name := range names {
		j, err := m.find(name)
		if err != nil {
			return err
		}
		if !j.mayBeSeenBy(user) {
			return unknown(name)
		}
		chosen = append(chosen, j)
	}
	if len(names) == 0 {
		for _, j := range m.list() {
			if j.mayBeSeenBy(user) {
				chosen = append(chosen, j)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	m.evacuate(ctx, chosen, evacuation{reason: ReasonEvacuation, after: after}, tell)
	return nil
}

func (m *Manager) evacuate(ctx context.Context, chosen []*job, e evacuation, tell func(Outcome)) {
	var telling sync.Mutex
	var all sync.WaitGroup
	for _, j := range chosen {
		if !wasAlive(j.state()) {
			continue // all that there is of it is on disk already
		}
		all.Go(func() {
			o := j.evacuate(ctx, e)
			telling.Lock()
			defer telling.Unlock()
			if tell != nil {
				tell(o)
			}
		})
	}
	all.Wait()
}

func (j *job) evacuate(ctx context.Context, e evacuation) Outcome {
	dumped, err := j.dumpFor(ctx, e)
	o := Outcome{Job: j.info(), Safe: err == nil, Err: err, Checkpoint: j.info().Last}
	if dumped != nil {
		o.Checkpoint = &dumped.Checkpoint
	}
	if err != nil && ctx.Err() != nil {
		o.Err = fmt.Errorf("not done in time: %w", err)
	}
	return o
}

func (j *job) dumpFor(ctx context.Context, e evacuation) (*Dumped, error) {
	end, err := j.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	switch state := j.state(); {
	case state == db.StateRunning:
		dumped, err := j.dump(ctx, DumpRequest{After: e.after, reason: e.reason})
		if ended := (*endedError)(nil); errors.As(err, &ended) && ended.exit.Clean() {
			return nil, nil
		}
		return dumped, err
	case wasAlive(state):
		return nil, fmt.Errorf("the job is %s", state)
	}
	return nil, nil // it has ended meanwhile
}
