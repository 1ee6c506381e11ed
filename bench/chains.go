package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"stasis"
	"stasis/bench/rig"
)

const (
	preDumpPause = 0.002 // seconds that a pre-dump may stop the program
	chainedPause = 0.040 // and a dump on top of an earlier one
	chainedBytes = 1.2   // bytes that such a dump may copy for each byte that was written
	longChain    = 500   // checkpoints
	sameSpeed    = 1.1   // times as long as a chain of 2 that a long one may take to restore
)

// writtenParts are the parts of the memory, in percent, that a program writes
// between two dumps of the curve.
var writtenParts = []int{1, 5, 20, 100}

// chain measures a chain of a program that writes all the time: how long it
// stands still in a pre-dump and in dumps, and how much these copy.
func (b *bench) chain(ctx context.Context, size int64) (rows []*row, err error) {
	s, err := b.start(ctx, size, b.rate)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	name := spaced(size)
	pre := &row{ID: "pre-dump/" + compact(size), What: "longest pause of a pre-dump, " + name, Unit: seconds, Beside: "no dump"}
	pause := &row{ID: "chain/" + compact(size), What: "longest pause of a chained dump, " + name, Unit: seconds}
	copied := &row{ID: "chain-bytes/" + compact(size), What: "copied by a dump 1 s after another, " + name, Unit: bytesUsed, Beside: "written"}

	var top kept
	for range b.ours {
		b.remove(top.dir)
		if top, err = b.paused(ctx, s, &pre.Ours, job{Do: "pre-dump", PID: s.pid}); err != nil {
			return nil, err
		}
		if err := b.undisturbed(ctx, s, &pre.Other, top.took); err != nil {
			return nil, err
		}
	}
	for range b.ours {
		before, err := s.figures(ctx)
		if err != nil {
			return nil, err
		}
		time.Sleep(time.Second)
		next, err := b.paused(ctx, s, &pause.Ours, job{PID: s.pid, Parent: top.dir, Track: true, After: stasis.AfterRun})
		if err != nil {
			return nil, err
		}
		after, err := s.figures(ctx)
		if err != nil {
			return nil, err
		}
		copied.Ours.add(float64(next.Raw))
		copied.Other.add(float64(after.written-before.written) * 4096)
		top = next
	}
	if _, err := s.check(ctx); err != nil {
		return nil, err
	}
	return []*row{
		b.target(pre, func(r *row) { r.within(preDumpPause) }),
		b.target(pause, func(r *row) { r.within(chainedPause) }),
		b.target(copied, func(r *row) { r.within(chainedBytes * r.Other.Median) }),
	}, nil
}

// paused makes a checkpoint that stays, and notes the longest time that the
// program stood still.
func (b *bench) paused(ctx context.Context, s *subject, into *series, j job) (kept, error) {
	if err := errors.Join(b.quiet(), s.forget(ctx)); err != nil {
		return kept{}, err
	}
	made, err := b.keep(ctx, j)
	if err != nil {
		return kept{}, err
	}
	seen, err := s.figures(ctx)
	b.notePause(into, seen)
	return made, err
}

// undisturbed notes the longest time that the program stands still when nobody
// dumps it, for as long as a dump took.
func (b *bench) undisturbed(ctx context.Context, s *subject, into *series, window time.Duration) error {
	if err := errors.Join(b.quiet(), s.forget(ctx)); err != nil {
		return err
	}
	time.Sleep(window)
	seen, err := s.figures(ctx)
	b.notePause(into, seen)
	return err
}

// changed measures a chained dump after a part of the memory was written,
// beside full dumps by Stasis and by CRIU.
func (b *bench) changed(ctx context.Context, size int64, percent int) (rows []*row, err error) {
	const window = 2 // seconds in which that part is written
	rate := int(size * int64(percent) / 100 / window / 1e6)
	s, err := b.start(ctx, size, max(1, rate), "watch=no", "writers=2")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	took := &row{ID: fmt.Sprintf("changed/%d%%", percent), What: fmt.Sprintf("chained dump, %d %% of %s written", percent, spaced(size)), Unit: seconds, Beside: besideCRIU}
	stored := &row{ID: fmt.Sprintf("changed-bytes/%d%%", percent), What: fmt.Sprintf("its size, %d %% of %s written", percent, spaced(size)), Unit: bytesUsed, Beside: "full dump"}

	top, err := b.keep(ctx, job{PID: s.pid, Track: true, After: stasis.AfterRun})
	if err != nil {
		return nil, err
	}
	stored.Other.add(float64(top.Stored))
	for range max(1, b.ours/2) {
		if err := b.quiet(); err != nil {
			return nil, err
		}
		time.Sleep(window * time.Second)
		next, err := b.keep(ctx, job{PID: s.pid, Parent: top.dir, Track: true, After: stasis.AfterRun})
		if err != nil {
			return nil, err
		}
		took.Ours.addTime(next.took)
		stored.Ours.add(float64(next.Stored))
		top = next
	}
	if _, err := s.check(ctx); err != nil {
		return nil, err
	}
	other, err := b.dumpStock(s.pid)(ctx)
	if err != nil {
		return nil, err
	}
	took.Other.addTime(other)
	took.Note = "CRIU in full: it cannot do it on this kernel"
	return []*row{b.target(took, func(*row) {}), b.target(stored, func(*row) {})}, nil
}

// longChain measures the restore of the last of a long chain beside that of a
// chain of two with the same content.
func (b *bench) longChain(ctx context.Context, size int64) (rows []*row, err error) {
	depth := longChain
	if b.small {
		depth = 10
	}
	s, err := b.start(ctx, size, 1, "watch=no")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	r := &row{ID: "long-chain", What: fmt.Sprintf("restore from a chain of %d, %s", depth, spaced(size)), Unit: seconds, Beside: "chain of 2"}
	short, err := b.chainOf(ctx, s, 2)
	if err != nil {
		return nil, err
	}
	long, err := b.chainOf(ctx, s, depth)
	if err != nil {
		return nil, err
	}
	for range b.ours {
		for _, one := range []struct {
			dir  string
			into *series
		}{{long, &r.Ours}, {short, &r.Other}} {
			if err := s.end(); err != nil {
				return nil, err
			}
			o, err := work(ctx, job{Do: "restore", Dir: one.dir})
			if err != nil {
				return nil, err
			}
			one.into.addTime(o.took)
			if _, err := s.check(ctx); err != nil {
				return nil, err
			}
		}
	}
	return []*row{b.target(r, func(r *row) { r.within(sameSpeed * r.Other.Median) })}, nil
}

// chainOf makes a chain of so many checkpoints and returns the last one's
// folder.
func (b *bench) chainOf(ctx context.Context, s *subject, depth int) (string, error) {
	var top kept
	for range depth {
		next, err := b.keep(ctx, job{PID: s.pid, Parent: top.dir, Track: true, After: stasis.AfterRun})
		if err != nil {
			return "", err
		}
		top = next
	}
	return top.dir, rig.WarmCache(top.dir)
}
