package inject

import "runtime"

// lockedStop stops a thread from a goroutine that keeps its operating system
// thread: only that thread may let it go.
func lockedStop(tid int) (*tracee, error) {
	runtime.LockOSThread()
	return stop(tid)
}
