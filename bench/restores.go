package main

import (
	"context"
	"errors"
	"time"

	"stasis"
	"stasis/bench/rig"
)

const (
	lazyTarget    = 0.040 // seconds until the first instruction
	restoreFactor = 3     // times faster than CRIU
	fillShare     = 0.8   // of the speed of populating fresh memory
	memoryTarget  = 128 << 20
	eagerRestore  = "all memory in place"
)

// restores measures restores from the page cache of a program that was killed:
// with all memory in place before it runs, and lazy ones, until the program
// goes on by its own clock.
func (b *bench) restores(ctx context.Context, size int64) (rows []*row, err error) {
	s, err := b.start(ctx, size, b.rate)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()

	name := "restore/" + compact(size)
	eager := &row{ID: name, What: "restore, " + eagerRestore + ", " + spaced(size), Unit: seconds, Beside: besideCRIU}
	fill := &row{ID: "fill/" + compact(size), What: "the fill alone, " + spaced(size), Unit: bytesPerSecond, Beside: "fresh memory"}
	lazy := &row{ID: "lazy/" + compact(size), What: "lazy restore, first instruction, " + spaced(size), Unit: seconds, Beside: besideCRIU}

	if err := b.restoreOurs(ctx, s, eager, fill, lazy); err != nil {
		return nil, err
	}
	if err := b.restoreStock(ctx, s, eager, lazy); err != nil {
		return nil, err
	}
	for range b.others {
		o, err := work(ctx, job{Do: "populate", Bytes: size})
		if err != nil {
			return nil, err
		}
		fill.Other.add(o.Rate)
	}

	large := size == b.sizes[len(b.sizes)-1]
	lazy.Note = "CRIU with its usual restore"
	rows = append(rows, b.target(eager, func(r *row) {
		if large {
			r.times(restoreFactor)
		}
	}))
	if large {
		rows = append(rows, b.target(fill, func(r *row) { r.times(fillShare) }))
	}
	return append(rows, b.target(lazy, func(r *row) { r.within(lazyTarget) })), nil
}

// restoreOurs dumps and ends the program and restores it several times. It
// leaves it running.
func (b *bench) restoreOurs(ctx context.Context, s *subject, eager, fill, lazy *row) error {
	if err := errors.Join(b.quiet(), s.forget(ctx)); err != nil {
		return err
	}
	saved, err := b.keep(ctx, job{PID: s.pid, Compression: "none", After: stasis.AfterKill})
	if err != nil {
		return err
	}
	defer b.remove(saved.dir)
	if err := errors.Join(rig.WaitGone(s.pid), rig.WarmCache(saved.dir), b.quiet()); err != nil {
		return err
	}
	for i := range 2 * b.ours {
		lazily := i%2 == 1
		if i > 0 {
			if err := s.end(); err != nil {
				return err
			}
		}
		o, err := work(ctx, job{Do: "restore", Dir: saved.dir, Lazy: lazily})
		if err != nil {
			return err
		}
		seen, err := s.check(ctx)
		if err != nil {
			return err
		}
		if lazily {
			addStart(&lazy.Ours, seen, o.begun)
			continue
		}
		eager.Ours.addTime(o.took)
		fill.Ours.add(float64(o.Bytes) / (float64(o.FillUS) / 1e6))
	}
	return nil
}

// restoreStock does the same with stock CRIU, whose restore is both rows'.
func (b *bench) restoreStock(ctx context.Context, s *subject, eager, lazy *row) error {
	dir := b.folder()
	defer b.remove(dir)
	if err := errors.Join(b.quiet(), s.forget(ctx)); err != nil {
		return err
	}
	if _, err := b.stock.Dump(ctx, s.pid, dir); err != nil {
		return err
	}
	if err := errors.Join(rig.WaitGone(s.pid), rig.WarmCache(dir)); err != nil {
		return err
	}
	for i := range b.others {
		if i > 0 {
			if err := s.end(); err != nil {
				return err
			}
		}
		begun := time.Now()
		took, err := b.stock.Restore(ctx, dir)
		if err != nil {
			return err
		}
		seen, err := s.check(ctx)
		if err != nil {
			return err
		}
		eager.Other.addTime(took)
		addStart(&lazy.Other, seen, begun)
	}
	return nil
}

// addStart notes the time from the start of a restore to the first instruction
// of the program: when the jump of the wall clock that it saw, which had begun
// with the dump, was over. On a machine so busy that the program stood still for
// longer by itself, there is nothing to note.
func addStart(into *series, seen answer, begun time.Time) {
	if after := seen.resumed.Sub(begun); after > 0 {
		into.addTime(after)
	}
}

// memory measures how much memory Stasis itself uses: its own, without the
// checkpoint's files that it has mapped, which are page cache.
func (b *bench) memory(ctx context.Context, size int64) (rows []*row, err error) {
	s, err := b.start(ctx, size, b.rate)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	dump := &row{ID: "memory-dump/" + compact(size), What: "Stasis's own memory, dump of " + spaced(size), Unit: bytesUsed}
	restore := &row{ID: "memory-restore/" + compact(size), What: "Stasis's own memory, restore of " + spaced(size), Unit: bytesUsed}

	saved, err := b.keep(ctx, job{PID: s.pid, After: stasis.AfterKill, WatchMemory: true})
	if err != nil {
		return nil, err
	}
	defer b.remove(saved.dir)
	if err := rig.WaitGone(s.pid); err != nil {
		return nil, err
	}
	restored, err := work(ctx, job{Do: "restore", Dir: saved.dir, WatchMemory: true})
	if err != nil {
		return nil, err
	}
	if _, err := s.check(ctx); err != nil {
		return nil, err
	}
	for r, o := range map[*row]*outcome{dump: saved.outcome, restore: restored} {
		r.Ours.add(float64(o.OwnKiB << 10))
		r.Note = "with mapped files " + bytesUsed.format(float64(o.PeakKiB<<10))
		b.target(r, func(r *row) { r.within(memoryTarget) })
	}
	return []*row{dump, restore}, nil
}
