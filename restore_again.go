package stasis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
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
	root := findKilledRoot(r.checkpoint.Manifest().RootPID, why)
	defer root.close()
	if err := r.takeDown(); err != nil {
		return errors.Join(why, err)
	}
	if err := r.do(StepCheck, func() error { return r.numbersAreFree(ctx, root) }); err != nil {
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

// killedRoot is the root of a tree that CRIU has made and then killed: it is a
// child of this process, nobody else knows of it, and it keeps its pid until it
// is collected. It is known by pidfd, so that a child of the library's caller
// which gets that pid is never taken for it.
type killedRoot struct{ pidfd int }

// findKilledRoot looks for it when CRIU has failed with why, for a number that was
// taken; nil where there is none. CRIU makes the root first: where that has
// failed, who has the pid is somebody else, who may well be a child of the
// library's caller. Where CRIU got further, the pid was its own root's.
func findKilledRoot(pid int, why error) *killedRoot {
	if criu.TellsOfTaken(why, pid) {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // CRIU's root is no child of ours, and has been collected
	}
	if task, err := proc.ReadTask(pid); err != nil || task.PPID != os.Getpid() {
		unix.Close(fd)
		return nil
	}
	return &killedRoot{fd}
}

// collect lets it go if it has ended. Else it is tried again later.
func (k *killedRoot) collect() {
	if k != nil {
		_ = unix.Waitid(unix.P_PIDFD, k.pidfd, nil, unix.WEXITED|unix.WNOHANG, nil)
	}
}

func (k *killedRoot) close() {
	if k != nil {
		unix.Close(k.pidfd)
	}
}

// numbersAreFree waits for the pids and thread ids of the tree, which some
// process has got meanwhile, and collects the root that CRIU has killed. Where
// somebody keeps a number, the error says who it is.
func (r *restore) numbersAreFree(ctx context.Context, root *killedRoot) error {
	numbers := numbersOf(r.checkpoint.Manifest())
	for begun := time.Now(); ; {
		root.collect()
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
