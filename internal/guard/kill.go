//go:build linux && (amd64 || arm64)

package guard

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

const (
	// patience is how long the guard waits for killed processes to end. One that
	// hangs in a fault on behalf of the kernel ends only when the descriptors close.
	patience = 5 * time.Second

	// A thread that the kernel has sent for a page which the held descriptors keep
	// away does not stop: it sleeps (state D), or asks over and over (R). It makes no
	// process meanwhile, so nothing is lost where it is not waited for.
	sleeperLimit = 200 * time.Millisecond
	askerLimit   = time.Second

	// look is the time between two looks whether all stand still.
	look = time.Millisecond
)

// process is a process known by pidfd.
type process struct{ pid, fd int }

// signal reports whether the process was there to get it; 0 only asks.
func (p process) signal(s unix.Signal) bool { return unix.PidfdSendSignal(p.fd, s, nil, 0) == nil }

// fire ends the watched processes and all their descendants, waits for that
// within limits, and lets go of what is held. They are stopped first: a child
// that is born while its parent is being killed would lose its place in the
// tree and get away.
func (w *watch) fire() {
	all := w.stopAll()
	for _, p := range all {
		p.signal(unix.SIGKILL)
	}
	waitAll(all)
	release(&w.held)
	release(&w.kept)
	waitAll(all)
}

func waitAll(all []process) {
	end := time.Now().Add(patience)
	for _, p := range all {
		p.wait(time.Until(end))
	}
}

// stopAll stops the watched and the expected processes and their descendants,
// and lists them. It looks for more until all that it knows stand still and
// another look finds nobody: CRIU that is not stopped yet may just be making the
// root of the tree.
func (w *watch) stopAll() []process {
	all := w.watched
	known := map[int]bool{}
	for _, p := range all {
		known[p.pid] = true
		p.signal(unix.SIGSTOP)
	}
	for begun := time.Now(); ; {
		standStill(all, begun)
		more := w.stopNew(all, known)
		if len(more) == 0 {
			return all
		}
		all = append(all, more...)
	}
}

// stopNew stops who is not known yet: children of those in the list, and expected ones.
func (w *watch) stopNew(list []process, known map[int]bool) (found []process) {
	stop := func(more []process) {
		for _, p := range more {
			known[p.pid] = true
			p.signal(unix.SIGSTOP)
		}
		found = append(found, more...)
	}
	stop(w.present(known))
	for _, p := range list {
		stop(p.children(known))
	}
	return found
}

// standStill waits until the processes have stopped or ended, which began when
// they were sent a signal for it.
func standStill(all []process, begun time.Time) {
	for ; time.Since(begun) < askerLimit; time.Sleep(look) {
		asleep, runs := false, false
		for _, p := range all {
			switch moving(proc.States(p.pid)) {
			case 0:
			case 'D':
				asleep = true
			default:
				runs = true
			}
		}
		if !runs && (!asleep || time.Since(begun) > sleeperLimit) {
			return
		}
	}
}

// moving is the state of a thread that has not stopped, 0 if there is none. The
// signal for all threads stops at the first one while that is traced (t), which is
// as long as CRIU makes the process; the others make none of their own then.
func moving(threads []byte) (state byte) {
	for i, s := range threads {
		switch {
		case i == 0 && s == 't':
			return 0
		case s == 'D' && state == 0:
			state = s
		case !strings.ContainsRune("TtZXD", rune(s)):
			return s
		}
	}
	return state
}

// file marks the processes that have it open for writing.
type file struct {
	device, inode uint64
	name          string
}

// present lists the expected processes that are there and not known yet.
func (w *watch) present(known map[int]bool) (list []process) {
	if len(w.expected) == 0 {
		return nil
	}
	self, err := proc.ReadTask(os.Getpid())
	if err != nil {
		return nil
	}
	pids, err := proc.All()
	if err != nil {
		return nil
	}
	for _, pid := range pids {
		if known[pid] || pid == self.PID {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		p := process{pid, fd}
		task, err := proc.ReadTask(pid)
		if err == nil && task.StartTime >= self.StartTime && w.marked(pid) && p.signal(0) {
			list = append(list, p)
			continue
		}
		_ = unix.Close(fd)
	}
	return list
}

// marked says whether a process has one of the expected files open. Only files
// of the right name are looked at: others may lie on file systems that do not answer.
func (w *watch) marked(pid int) bool {
	files, err := proc.OpenFiles(pid)
	if err != nil {
		return false
	}
	defer files.Close()
	list, err := files.List()
	if err != nil {
		return false
	}
	for _, d := range list {
		target, _ := proc.CutDeleted(d.Target)
		for _, f := range w.expected {
			if filepath.Base(target) != f.name || !files.Writable(d.FD) {
				continue
			}
			if st, err := files.Stat(d.FD); err == nil && st.Dev == f.device && st.Ino == f.inode {
				return true
			}
		}
	}
	return false
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
