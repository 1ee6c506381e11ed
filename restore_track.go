package stasis

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/inject"
	"stasis/internal/keeper"
	"stasis/internal/proc"
	"stasis/internal/track"
)

// A restored tree can go on with the chain that it comes from: its trackers are
// armed when all memory is in place and no thread runs yet. The processes are
// held by CRIU then, which makes the system calls for Stasis (criu.Arm).

// prepareTrackers makes room for the trackers, if they are wanted and possible.
func (r *restore) prepareTrackers() {
	switch {
	case !r.opts.Track || r.pager == nil:
		return
	case r.opts.Lazy:
		r.warnUntracked(errors.New("its memory comes while it runs"))
		return
	case !r.criu.Dynamic:
		r.warnUntracked(fmt.Errorf("no library can be preloaded into %s", r.criu.Path))
		return
	}
	if err := track.Available(); err != nil {
		r.warnUntracked(err)
		return
	}
	r.trackers = make(map[int]*track.WriteProtect)
}

func (r *restore) warnUntracked(why error) {
	r.warn("the writes of the restored tree are not tracked (%v): the next dump on top of this checkpoint compares all memory", why)
}

// armProcess arms the tracker of a process when CRIU is about to let its first
// thread go. The others still stand still. Where it does not work the process
// stays without one, and the next dump compares its memory.
func (r *restore) armProcess(pid int, call criu.Caller) {
	if _, known := r.trackers[pid]; known {
		return
	}
	r.trackers[pid] = nil // whatever comes: it is tried once
	tracker, err := track.NewWriteProtectBy(func(pid, flags int) (int, error) { return userfaultfdBy(call, pid, flags) }, pid)
	if err != nil {
		return
	}
	maps, err := proc.Maps(pid)
	if err == nil {
		err = tracker.Round(eligible(maps), func(proc.Run) {})
	}
	if err != nil {
		tracker.Close()
		return
	}
	r.trackers[pid] = tracker
}

// userfaultfdBy is [inject.Userfaultfd] in a process that CRIU traces.
func userfaultfdBy(call criu.Caller, pid, flags int) (fd int, err error) {
	gadget, err := inject.FindSyscall(pid)
	if err != nil {
		return -1, err
	}
	remote, err := call(gadget, unix.SYS_USERFAULTFD, uint64(flags))
	if err != nil {
		return -1, err
	}
	fd, err = inject.Fetch(pid, int(remote))
	// CRIU refuses a process that holds a userfaultfd, so no copy may stay.
	if _, closeErr := call(gadget, unix.SYS_CLOSE, remote); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("close it there: %w", closeErr))
	}
	if err != nil && fd >= 0 {
		unix.Close(fd)
		fd = -1
	}
	return fd, err
}

// keepTrackers hands the trackers over for the next dump, with the restored
// checkpoint as its parent.
func (r *restore) keepTrackers() {
	root, err := proc.ReadTask(r.result.PID)
	if r.trackers == nil || err != nil {
		return
	}
	m := r.checkpoint.Manifest()
	state := &keeper.State{
		Root: root.PID, Start: root.StartTime, Comm: root.Comm, Tracker: "userfaultfd",
		Armed: m.ID, Dir: r.opts.Dir, Since: m.Created,
	}
	if dir, err := filepath.Abs(r.opts.Dir); err == nil && r.opts.Dir != "" {
		state.Dir = dir
	}
	touched := r.pager.Touched()
	var fds []int
	for pid, tracker := range r.trackers {
		task, err := proc.ReadTask(pid)
		if tracker == nil || err != nil {
			continue
		}
		state.Processes = append(state.Processes, keeper.Process{PID: pid, Start: task.StartTime})
		fds = append(fds, tracker.Fd())
		for _, pages := range touched[task.NSPID] {
			state.Lost = append(state.Lost, keeper.Lost{PID: pid, Begin: pages.Start, End: pages.End})
		}
	}
	if err := keeper.Put(state, fds); err != nil {
		r.warnUntracked(err)
	}
}

func (r *restore) endArm() {
	if r.arm != nil {
		r.arm.Close()
	}
	for _, tracker := range r.trackers {
		if tracker != nil {
			tracker.Close()
		}
	}
}
