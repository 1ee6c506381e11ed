//go:build linux && (amd64 || arm64)

package guard

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// patience is how long the guard waits for killed processes to end. One that
// hangs in a fault on behalf of the kernel ends only when the descriptors close.
const patience = 5 * time.Second

// process is a process known by pidfd.
type process struct{ pid, fd int }

// signal reports whether the process was there to get it; 0 only asks.
func (p process) signal(s unix.Signal) bool { return unix.PidfdSendSignal(p.fd, s, nil, 0) == nil }

// fire ends the watched processes and all their descendants, waits for that
// within limits, and lets go of what is held. They are stopped first: a child
// that is born while its parent is being killed would lose its place in the
// tree and get away.
func (w *watch) fire() {
	for _, e := range w.expected {
		w.addExpected(e)
	}
	all := w.stopTree()
	for _, p := range all {
		p.signal(unix.SIGKILL)
	}
	waitAll(all)
	w.release()
	waitAll(all)
}

// expected is a process that may come to be: see Guard.Expect.
type expected struct {
	pid           int
	device, inode uint64 // of the program that it runs
}

// addExpected watches an expected process if it is there and is the one.
func (w *watch) addExpected(e expected) {
	for _, p := range w.watched {
		if p.pid == e.pid {
			return
		}
	}
	fd, err := unix.PidfdOpen(e.pid, 0)
	if err != nil {
		return // it was never born, or has ended
	}
	self, err := proc.ReadTask(os.Getpid())
	if err == nil && e.isRunning(self.StartTime) {
		w.watched = append(w.watched, process{e.pid, fd})
		return
	}
	_ = unix.Close(fd)
}

// isRunning says whether the process with the pid is the expected one: another
// one may have got the pid, and belongs to somebody.
func (e expected) isRunning(guardBorn uint64) bool {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/exe", e.pid), &st) != nil || st.Dev != e.device || st.Ino != e.inode {
		return false
	}
	task, err := proc.ReadTask(e.pid)
	return err == nil && task.StartTime >= guardBorn
}

func waitAll(all []process) {
	end := time.Now().Add(patience)
	for _, p := range all {
		p.wait(time.Until(end))
	}
}

// stopTree stops the watched processes and their descendants and lists them.
func (w *watch) stopTree() []process {
	all := w.watched
	known := map[int]bool{}
	for _, p := range all {
		known[p.pid] = true
		p.signal(unix.SIGSTOP)
	}
	// A signal stops a process a moment after it was sent. So look until two
	// passes in a row have found nobody new.
	for quiet := 0; quiet < 2; quiet++ {
		for i := 0; i < len(all); i++ {
			for _, child := range all[i].children(known) {
				known[child.pid] = true
				child.signal(unix.SIGSTOP)
				all = append(all, child)
				quiet = -1
			}
		}
	}
	return all
}

// children opens those children of p that are not known yet. A list of children
// is p's only if p is there both before and after; and a child is p's only if
// it still says so once it can't be mistaken for another.
func (p process) children(known map[int]bool) []process {
	if !p.signal(0) {
		return nil
	}
	pids, err := proc.Children(p.pid)
	if err != nil || !p.signal(0) {
		return nil
	}
	var list []process
	for _, pid := range pids {
		if known[pid] {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		task, err := proc.ReadTask(pid)
		if err != nil || task.PPID != p.pid || !p.signal(0) {
			_ = unix.Close(fd)
			continue
		}
		list = append(list, process{pid, fd})
	}
	return list
}

// wait waits until the process has ended.
func (p process) wait(limit time.Duration) {
	poll := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	_ = retry(func() error {
		_, err := unix.Poll(poll, int(max(limit, 0).Milliseconds()))
		return err
	})
}
