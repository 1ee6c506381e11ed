package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// span is a piece of time.
type span struct{ begin, end time.Time }

func (s span) length() time.Duration { return max(0, s.end.Sub(s.begin)) }

// overlap is what two pieces have in common.
func (s span) overlap(o span) span {
	if o.begin.After(s.begin) {
		s.begin = o.begin
	}
	if o.end.Before(s.end) {
		s.end = o.end
	}
	return s
}

const (
	stallNap  = time.Millisecond     // between two looks
	stallMin  = 2 * time.Millisecond // shorter ones are not noted
	stallPrio = 1                    // of the real-time threads that look
)

// stalls notes when the machine itself stood still: virtual machines do, for
// tens of milliseconds, when they used more than their share of the host. A
// program that is dumped stands still then as well, and so does everything
// else; what a dump costs is seen without these times only.
//
// A real-time thread on each CPU, before whom no other thread comes, looks at
// the clock all the time. Where none of them ran, no CPU did: one that works for
// a dump, or for the kernel on its behalf, leaves the others to look.
type stalls struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu   sync.Mutex
	cpus [][]span // when each CPU did not look, in order of time
}

// watchStalls begins to look.
func watchStalls(ctx context.Context) (*stalls, error) {
	n := runtime.NumCPU()
	s := &stalls{cpus: make([][]span, n)}
	ctx, s.stop = context.WithCancel(ctx)
	ready := make(chan error, n)
	for cpu := range n {
		s.done.Go(func() { s.watch(ctx, cpu, ready) })
	}
	for range n {
		if err := <-ready; err != nil {
			s.end()
			return nil, err
		}
	}
	return s, nil
}

func (s *stalls) end() { s.stop(); s.done.Wait() }

// watch looks from one CPU. Its thread ends with it.
func (s *stalls) watch(ctx context.Context, cpu int, ready chan<- error) {
	runtime.LockOSThread()
	var only unix.CPUSet
	only.Set(cpu)
	err := unix.SchedSetaffinity(0, &only)
	if err == nil {
		err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: stallPrio}, 0)
	}
	if err != nil {
		ready <- fmt.Errorf("watch CPU %d for times at which the machine stands still: %w", cpu, err)
		return
	}
	ready <- nil
	nap := unix.NsecToTimespec(stallNap.Nanoseconds())
	for last := time.Now(); ctx.Err() == nil; {
		_ = unix.Nanosleep(&nap, nil) // a signal may end it early
		now := time.Now()
		if now.Sub(last) >= stallMin {
			s.note(cpu, span{last, now})
		}
		last = now
	}
}

func (s *stalls) note(cpu int, missed span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cpus[cpu] = append(s.cpus[cpu], missed)
}

// in returns the times within a piece at which the machine stood still.
func (s *stalls) in(within span) []span {
	s.mu.Lock()
	defer s.mu.Unlock()
	still := []span{within}
	for _, missed := range s.cpus {
		var both []span
		for _, a := range still {
			for _, b := range slices.Backward(missed) {
				if b.end.Before(a.begin) {
					break
				}
				if o := a.overlap(b); o.length() >= stallMin/2 {
					both = append(both, o)
				}
			}
		}
		still = both
	}
	return still
}

// without is the length of a piece less the times at which the machine stood still.
func (s *stalls) without(gap span) time.Duration {
	left := gap.length()
	for _, still := range s.in(gap) {
		left -= still.length()
	}
	return left
}

// longest is the longest of some standstills of a program, less the times at
// which the whole machine stood still.
func (s *stalls) longest(gaps []span) time.Duration {
	var most time.Duration
	for _, gap := range gaps {
		most = max(most, s.without(gap))
	}
	return most
}
