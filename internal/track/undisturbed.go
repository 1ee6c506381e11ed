package track

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// undisturbed does something short that no other program's thread should come in
// the middle of, on this CPU: what was looked at a microsecond ago is still so, while
// after a time slice of others it need not be. Where the thread may not have a
// real-time priority, it does without.
func undisturbed(short func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	usual, err := unix.SchedGetAttr(0, 0)
	if err == nil && usual.Policy == unix.SCHED_NORMAL {
		urgent := unix.SchedAttr{Size: usual.Size, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
		if unix.SchedSetAttr(0, &urgent, 0) == nil {
			defer func() { _ = unix.SchedSetAttr(0, usual, 0) }()
		}
	}
	short()
}
