package stasis

import (
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/inject"
	"stasis/internal/proc"
	"stasis/internal/settings"
)

// What CRIU does not keep of processes is put back at three moments: in CRIU's
// images before CRIU reads them, from outside when all of the tree is there and
// stands still, and by system calls in the threads just before they are let go.

// mendImages changes CRIU's images where CRIU would restore something else than
// was dumped.
func (r *restore) mendImages() error {
	semaphores := make(map[int][]int)
	for _, p := range r.checkpoint.Manifest().Processes {
		if p.Settings == nil {
			continue
		}
		semaphores[p.PID] = p.Settings.Semaphores
		for _, t := range p.Settings.Threads {
			if t.Deadline == nil {
				continue
			}
			if _, err := criu.MendPolicy(r.work.Path(), t.TID); err != nil {
				return r.fail(StepUnpack, ErrDamaged, err)
			}
		}
	}
	eventfds, lost, err := criu.MendFiles(r.work.Path(), semaphores, r.criu.Dynamic)
	if err != nil {
		return r.fail(StepUnpack, ErrDamaged, err)
	}
	if lost > 0 {
		r.warn("%d eventfds lose their upper 32 bits, or that they are semaphores: no library can be preloaded into %s", lost, r.criu.Path)
	}
	r.eventfds = eventfds
	return r.mendGuards()
}

// mendGuards takes from CRIU the guard pages that it could not install.
func (r *restore) mendGuards() error {
	processes, err := criu.Processes(r.work.Path())
	if err != nil {
		return r.fail(StepUnpack, ErrDamaged, err)
	}
	r.guards = make(map[int][]proc.Range)
	for _, p := range processes {
		ranges, err := criu.MendGuards(r.work.Path(), p.PID)
		if err != nil {
			return r.fail(StepUnpack, ErrDamaged, err)
		}
		if len(ranges) > 0 {
			r.guards[p.PID] = ranges
		}
	}
	return nil
}

func (r *restore) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(r.result.Warnings, text) { // a step can come again
		r.result.Warnings = append(r.result.Warnings, text)
	}
}

// applySettings gives the processes their settings when none of them runs yet.
func (r *restore) applySettings() {
	saved := r.settingsByPID()
	if len(saved) == 0 {
		return
	}
	tree, err := proc.Tree(r.result.PID)
	if err != nil {
		return // it has been ended; whoever did that says why
	}
	for _, task := range tree {
		if s := saved[task.NSPID]; s != nil && !task.Zombie() {
			r.applier.Apply(task, s)
		}
	}
}

// settingsByPID are the settings in the manifest, by the pid inside.
func (r *restore) settingsByPID() map[int]*image.Settings {
	saved := make(map[int]*image.Settings)
	for _, p := range r.checkpoint.Manifest().Processes {
		if p.Settings != nil {
			saved[p.PID] = p.Settings
		}
	}
	return saved
}

// prepareArm makes what CRIU asks before it lets a thread go, where there is
// anything to do then.
func (r *restore) prepareArm() (err error) {
	r.personalities = make(map[int]*image.Settings)
	for pid, s := range r.settingsByPID() {
		if settings.HasPersonality(s) {
			r.personalities[pid] = s
		}
	}
	r.prepareTrackers()
	visit := r.visit
	if r.trackers == nil && len(r.personalities) == 0 && len(r.guards) == 0 {
		visit = nil
	}
	switch {
	case visit == nil && len(r.eventfds) == 0 && len(r.checkpoint.Manifest().Processes) == 1:
		return nil
	case !r.criu.Dynamic:
		if len(r.personalities) > 0 {
			r.warn("the personality of threads could not be put back: no library can be preloaded into %s", r.criu.Path)
		}
		if len(r.guards) > 0 {
			r.warn("guard pages in locked memory (MADV_GUARD_INSTALL) could not be put back: no library can be preloaded into %s", r.criu.Path)
		}
		return nil
	}
	if r.arm, err = criu.NewArm(visit); err == nil {
		r.arm.Eventfds(r.eventfds)
	}
	return err
}

// visit does what is left to do with a thread that CRIU is about to let go.
func (r *restore) visit(tid int, call criu.Caller) {
	pid, err := proc.ThreadGroup(tid)
	if err != nil {
		return
	}
	if r.trackers != nil {
		r.armProcess(pid, call)
	}
	if len(r.personalities) == 0 && len(r.guards) == 0 {
		return
	}
	task, err := proc.ReadTask(pid)
	if err != nil {
		return
	}
	gadget := sync.OnceValues(func() (uint64, error) { return inject.FindSyscall(pid) })
	callHere := func(number uintptr, args ...uint64) (uint64, error) {
		at, err := gadget()
		if err != nil {
			return 0, err
		}
		return call(at, number, args...)
	}
	if guards := r.guards[task.NSPID]; len(guards) > 0 {
		delete(r.guards, task.NSPID) // once for all threads
		if err := installGuards(guards, callHere); err != nil {
			r.warn("guard pages in locked memory of process %d could not be put back: %v", pid, err)
		}
	}
	if s := r.personalities[task.NSPID]; s != nil {
		r.applier.SetPersonality(tid, settings.Personality(s, settings.Inside(task, tid)), callHere)
	}
}

// installGuards makes guard pages of pages in locked memory. The kernel refuses
// that, but allows to lock what is around a guard, and the guard with it.
func installGuards(guards []proc.Range, call func(number uintptr, args ...uint64) (uint64, error)) error {
	for _, g := range guards {
		if _, err := call(unix.SYS_MUNLOCK, g.Start, g.Len()); err != nil {
			return fmt.Errorf("unlock %#x-%#x: %w", g.Start, g.End, err)
		}
		_, err := call(unix.SYS_MADVISE, g.Start, g.Len(), unix.MADV_GUARD_INSTALL)
		// It locks the mapping, but not the page, which nobody can have: ENOMEM.
		_, _ = call(unix.SYS_MLOCK, g.Start, g.Len())
		if err != nil {
			return fmt.Errorf("install %#x-%#x: %w", g.Start, g.End, err)
		}
	}
	return nil
}
