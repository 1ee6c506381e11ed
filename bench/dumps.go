package main

import (
	"context"
	"errors"
	"os"
	"time"

	"stasis"
)

// pauseTargets are the longest pauses in seconds by size of the program.
var pauseTargets = map[int64]float64{50 << 20: 0.010, 1 << 30: 0.015, 4 << 30: 0.040}

// pauseFactor is how much shorter than CRIU's the pause of the largest has to be.
const pauseFactor = 60

// pause measures how long the program stands still, as it sees it itself, while
// it is dumped with the default options and goes on.
func (b *bench) pause(ctx context.Context, size int64) (rows []*row, err error) {
	s, err := b.start(ctx, size, b.rate)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	r := &row{ID: "pause/" + compact(size), What: "longest pause, " + spaced(size), Unit: seconds, Beside: besideCRIU}
	for i := range max(b.ours, b.others) {
		if i < b.ours {
			if err := b.pauseOf(ctx, s, &r.Ours, b.dumpOurs(job{PID: s.pid})); err != nil {
				return nil, err
			}
		}
		if i < b.others {
			if err := b.pauseOf(ctx, s, &r.Other, b.dumpStock(s.pid)); err != nil {
				return nil, err
			}
		}
	}
	if _, err := s.check(ctx); err != nil {
		return nil, err
	}
	return []*row{b.target(r, func(r *row) {
		r.within(pauseTargets[size])
		if size == b.sizes[len(b.sizes)-1] {
			r.times(pauseFactor)
		}
	})}, nil
}

// dumper makes one checkpoint, lets the program run on, and removes the
// checkpoint again. It returns how long the dump took.
type dumper func(context.Context) (time.Duration, error)

func (b *bench) dumpOurs(j job) dumper {
	j.After = stasis.AfterRun
	return func(ctx context.Context) (time.Duration, error) {
		o, err := b.keep(ctx, j)
		if err != nil {
			return 0, err
		}
		return o.took, os.RemoveAll(o.dir)
	}
}

func (b *bench) dumpStock(pid int, flags ...string) dumper {
	flags = append([]string{"--leave-running"}, flags...)
	return func(ctx context.Context) (time.Duration, error) {
		dir := b.folder()
		took, err := b.stock.Dump(ctx, pid, dir, flags...)
		return took, errors.Join(err, os.RemoveAll(dir))
	}
}

// kept is a checkpoint of ours that is still there.
type kept struct {
	*outcome
	dir string
}

// keep dumps as the job says, into a new folder.
func (b *bench) keep(ctx context.Context, j job) (kept, error) {
	j.Dir = b.folder()
	if j.Do == "" {
		j.Do = "dump"
	}
	if err := b.quiet(); err != nil {
		return kept{}, err
	}
	o, err := work(ctx, j)
	return kept{o, j.Dir}, err
}

// pauseOf dumps once and notes the longest time that the program stood still.
func (b *bench) pauseOf(ctx context.Context, s *subject, into *series, dump dumper) error {
	if err := errors.Join(b.quiet(), s.forget(ctx)); err != nil {
		return err
	}
	if _, err := dump(ctx); err != nil {
		return err
	}
	seen, err := s.figures(ctx)
	b.notePause(into, seen)
	return err
}

// notePause notes the longest standstill, less the times at which the whole
// machine stood still, and as it was with them.
func (b *bench) notePause(into *series, seen answer) {
	into.addTime(b.stalls.longest(seen.gaps))
	into.Seen = append(into.Seen, seen.gap.Seconds())
}

// wholeDump measures a dump to the disk without compression, while the program
// writes.
func (b *bench) wholeDump(ctx context.Context, size int64) (rows []*row, err error) {
	s, err := b.start(ctx, size, b.rate)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	r := &row{ID: "dump/" + compact(size), Bytes: size, What: "dump to disk, no compression, " + spaced(size), Unit: bytesPerSecond, Beside: besideCRIU}
	if err := b.rates(ctx, size, &r.Ours, b.dumpOurs(job{PID: s.pid, Compression: "none"}), b.ours); err != nil {
		return nil, err
	}
	if err := b.rates(ctx, size, &r.Other, b.dumpStock(s.pid), b.others); err != nil {
		return nil, err
	}
	return []*row{b.target(r, func(r *row) { r.times(2) })}, nil
}

// rates dumps some times and notes bytes of the program's memory per second.
func (b *bench) rates(ctx context.Context, size int64, into *series, dump dumper, times int) error {
	for range times {
		if err := b.quiet(); err != nil {
			return err
		}
		took, err := dump(ctx)
		if err != nil {
			return err
		}
		into.add(float64(size) / took.Seconds())
	}
	return nil
}

const (
	// sampleBytes is how much of the program's memory the codec alone gets.
	sampleBytes = 512 << 20
	// nearCodec is what counts as the codec's own speed: start, freeze and
	// the final sync are in the dump's time too.
	nearCodec = 0.9
)

// compressedDump measures a dump with the default codec of a program that is
// quiet, beside the codec by itself.
func (b *bench) compressedDump(ctx context.Context, size int64) (rows []*row, err error) {
	s, err := b.start(ctx, size, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	r := &row{ID: "codec/" + compact(size), What: "dump, " + stasis.DefaultCompression + ", program quiet, " + spaced(size), Unit: bytesPerSecond, Beside: "codec alone"}
	if err := b.rates(ctx, size, &r.Ours, b.dumpOurs(job{PID: s.pid}), b.ours); err != nil {
		return nil, err
	}
	for range b.others {
		o, err := work(ctx, job{Do: "codec", PID: s.pid, Bytes: min(sampleBytes, size)})
		if err != nil {
			return nil, err
		}
		r.Other.add(o.Rate)
	}
	return []*row{b.target(r, func(r *row) { r.times(nearCodec) })}, nil
}
