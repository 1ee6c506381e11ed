package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"stasis"
)

const (
	trackedSpeed = 0.95 // of its speed that a tracked program keeps
	trackedCPU   = 0.05 // of a CPU that it may need more
)

// tracking measures what it costs a program to be tracked between dumps: one
// that writes as fast as it can, and one that reads.
func (b *bench) tracking(ctx context.Context, size int64) (rows []*row, err error) {
	writes := &row{ID: "tracking-writes", What: "writes of a tracked program, " + spaced(size), Unit: bytesPerSecond, Beside: "untracked"}
	reads := &row{ID: "tracking-reads", What: "reads of a tracked program, " + spaced(size), Unit: bytesPerSecond, Beside: "untracked"}
	s, err := b.start(ctx, size, 1e6, "watch=no")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	for range b.ours {
		if err := b.writeSpeed(ctx, s, &writes.Other); err != nil {
			return nil, err
		}
		if err := b.readSpeed(ctx, s, size, &reads.Other); err != nil {
			return nil, err
		}
		made, err := b.keep(ctx, job{Do: "pre-dump", PID: s.pid})
		if err != nil {
			return nil, err
		}
		if err := b.writeSpeed(ctx, s, &writes.Ours); err != nil {
			return nil, err
		}
		if err := b.readSpeed(ctx, s, size, &reads.Ours); err != nil {
			return nil, err
		}
		b.remove(made.dir)
		if err := stasis.StopTracker(s.pid); err != nil {
			return nil, err
		}
	}
	keep := func(r *row) { r.times(trackedSpeed) }
	return []*row{b.target(writes, keep), b.target(reads, keep)}, nil
}

// trackingLoad measures how much more CPU time a program needs that writes at the
// usual rate, when it is tracked: a fault for the first write to each page. As it
// writes as much as before, its speed would not show it.
func (b *bench) trackingLoad(ctx context.Context, size int64) (rows []*row, err error) {
	cpu := &row{ID: "tracking-cpu", What: fmt.Sprintf("CPU time in each second, %d MB/s written and tracked, %s", b.rate, spaced(size)), Unit: seconds, Beside: "untracked"}
	s, err := b.start(ctx, size, b.rate, "watch=no")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	for range b.ours {
		if err := b.cpuShare(s, &cpu.Other); err != nil {
			return nil, err
		}
		made, err := b.keep(ctx, job{Do: "pre-dump", PID: s.pid})
		if err != nil {
			return nil, err
		}
		if err := b.cpuShare(s, &cpu.Ours); err != nil {
			return nil, err
		}
		b.remove(made.dir)
		if err := stasis.StopTracker(s.pid); err != nil {
			return nil, err
		}
	}
	return []*row{b.target(cpu, func(r *row) { r.within(r.Other.Median + trackedCPU) })}, nil
}

// cpuShare notes the CPU time of a program, in seconds for each second.
func (b *bench) cpuShare(s *subject, into *series) error {
	const window = 4 * time.Second
	before, err := cpuTime(s.pid)
	if err != nil {
		return err
	}
	begun := time.Now()
	time.Sleep(window)
	after, err := cpuTime(s.pid)
	into.add((after - before).Seconds() / time.Since(begun).Seconds())
	return err
}

// cpuTime is how long the threads of a process have run. It is exact, unlike what
// /proc/PID/stat has in hundredths of a second.
func cpuTime(pid int) (total time.Duration, err error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(paths) == 0 {
		return 0, fmt.Errorf("the CPU time of process %d: it has ended, or the kernel lacks CONFIG_SCHED_INFO", pid)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		var ran int64
		if _, err := fmt.Sscan(string(text), &ran); err != nil {
			return 0, fmt.Errorf("read %s: %w", path, err)
		}
		total += time.Duration(ran)
	}
	return total, nil
}

func (b *bench) writeSpeed(ctx context.Context, s *subject, into *series) error {
	const window = 4 * time.Second
	before, err := s.figures(ctx)
	if err != nil {
		return err
	}
	begun := time.Now()
	time.Sleep(window)
	after, err := s.figures(ctx)
	into.add(float64(after.written-before.written) * 4096 / time.Since(begun).Seconds())
	return err
}

// readSpeed lets the program check, and so read, all of its memory some times,
// and notes the fastest: what else happens on the machine only makes it slower,
// one time more and the next time less than tracking could.
func (b *bench) readSpeed(ctx context.Context, s *subject, size int64, into *series) error {
	const times = 3
	fastest := 0.0
	for range times {
		begun := time.Now()
		if _, err := s.check(ctx); err != nil {
			return err
		}
		fastest = max(fastest, float64(size)/time.Since(begun).Seconds())
	}
	into.add(fastest)
	return nil
}
