package main

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// clock sees when the program stood still: it looks at the time all the time,
// and notices when some is missing.
type clock struct {
	mu   sync.Mutex
	most time.Duration // guarded by mu; since it was last asked for
}

func startClock() *clock {
	c := &clock{}
	go c.watch()
	return c
}

// watch has a thread to itself and sleeps by the kernel's own means: it should
// see the program stand still, not the Go scheduler being busy.
func (c *clock) watch() {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // else each nap is 50 µs longer than asked
	nap := unix.NsecToTimespec(int64(100 * time.Microsecond))
	for last := time.Now(); ; {
		_ = unix.Nanosleep(&nap, nil) // woken early by a signal: the better
		now := time.Now()
		c.mu.Lock()
		c.most = max(c.most, now.Sub(last))
		c.mu.Unlock()
		last = now
	}
}

// longest returns the longest standstill since it was last called.
func (c *clock) longest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := c.most
	c.most = 0
	return most
}
