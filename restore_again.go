package stasis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/guard"
	"stasis/internal/proc"
)

// A pid or thread id that was free when the restore looked can be given to
// another process before CRIU asks for it. CRIU undoes what it did then, before
// any instruction of the tree has run. On a machine on which processes come and
// go fast that passes soon.

// restoreAttempts is how often CRIU is asked in all.
const restoreAttempts = 4

// startOver makes everything as it was before CRIU failed, once the numbers of
// the tree are free again. Why is CRIU's error.
func (r *restore) startOver(ctx context.Context, why error) error {
	if err := r.takeDown(); err != nil {
		return errors.Join(why, err)
	}
	if err := r.do(StepCheck, func() error { return r.numbersAreFree(ctx) }); err != nil {
		return errors.Join(err, why)
	}
	r.guardStarts = inBackground(guard.Start)
	return r.do(StepUnpack, func() error { return r.unpack(ctx) })
}

// takeDown ends what served CRIU, after the last of the tree.
func (r *restore) takeDown() error {
	err := r.killTree()
	r.result.PID = 0
	if r.guard != nil {
		err = errors.Join(err, r.guard.Fire())
		r.guard = nil
	}
	r.guardStarts = nil
	r.endArm()
	r.arm, r.trackers = nil, nil
	r.early = sync.Once{}
	if r.pager != nil {
		err = errors.Join(err, r.pager.Close())
		r.pager = nil
	}
	if r.work != nil {
		err = errors.Join(err, r.work.Remove())
		r.work = nil
	}
	return err
}

// collectRoot lets a root of the tree go that CRIU has killed: it was a child of
// this process, and nobody else knows of it.
func (r *restore) collectRoot() {
	pid := r.checkpoint.Manifest().RootPID
	if task, err := proc.ReadTask(pid); err == nil && task.Zombie() && task.PPID == os.Getpid() {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it is looked for again
	}
}

// numbersAreFree waits for the pids and thread ids of the tree, which some
// process has got meanwhile. Where it keeps one, the error says who it is.
func (r *restore) numbersAreFree(ctx context.Context) error {
	numbers := numbersOf(r.checkpoint.Manifest())
	for begun := time.Now(); ; {
		r.collectRoot()
		holders, err := proc.Holders(numbers)
		if err != nil {
			return fmt.Errorf("look for the pids of the tree: %w", err)
		}
		if len(holders) == 0 {
			return nil
		}
		if time.Since(begun) > pidLimit {
			found := &conflicts{}
			found.tellHolders(holders)
			return r.fail(StepCheck, ErrConflict, errors.Join(found.errors...))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the pids of the tree: %w", ctx.Err())
		case <-time.After(pidPause):
		}
	}
}
