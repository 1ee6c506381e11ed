package stasis

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/capture"
	"stasis/internal/chain"
	"stasis/internal/image"
	"stasis/internal/inject"
	"stasis/internal/keeper"
	"stasis/internal/proc"
	"stasis/internal/store"
	"stasis/internal/track"
)

// A chained dump builds on an earlier checkpoint, its parent. What it has to
// copy is known in one of two ways: trackers that were kept since the parent say
// which pages were written, or, where there are none, all memory is copied and
// compared with the parent's. Either way the checkpoint holds what differs from
// the parent, and refers to the parent for the rest. A tracker is believed only
// for the very checkpoint that it was armed for.

// openParent opens the checkpoint that this one builds on.
func (d *dump) openParent(ctx context.Context) (err error) {
	if d.opts.Parent == "" {
		return nil
	}
	if d.parentLock, err = chain.LockShared(ctx, d.opts.Parent); err == nil {
		d.parent, err = d.parentLock.Open()
	}
	switch {
	case isDamage(err):
		return d.fail(StepPrepare, nil, err)
	case err != nil:
		return d.fail(StepPrepare, ErrInput, fmt.Errorf("the parent: %w", err))
	}
	m := d.parent.Manifest()
	if m.RootPID != d.tree[0].NSPID {
		return d.fail(StepPrepare, ErrInput, fmt.Errorf("the parent %s is a checkpoint of process %d, and this is process %d: leave the parent out", d.opts.Parent, m.RootPID, d.tree[0].NSPID))
	}
	if limit := d.opts.MaxChain; limit > 0 && m.Depth+1 >= limit {
		d.note("the chain has reached the limit of checkpoints, %d: this one begins a new chain", m.Depth+1)
		return d.leaveParent()
	}
	return d.parentThere(StepPrepare)
}

// leaveParent closes the parent and lets go of it.
func (d *dump) leaveParent() (err error) {
	if d.parent != nil {
		err = d.parent.Close()
		d.parent = nil
	}
	if d.parentLock != nil {
		err = errors.Join(err, d.parentLock.Unlock())
		d.parentLock = nil
	}
	return err
}

// autoDedup gives back what the ancestors hold and nobody needs any more. The
// checkpoint is there already, whatever comes of it. It can have another id
// afterwards: it was written anew then, and it is that one that the trackers
// are kept for.
func (d *dump) autoDedup(ctx context.Context) {
	if !d.opts.AutoDedup || d.opts.Dir == "" || d.manifest.Parent == "" {
		return
	}
	err := d.leaveParent()
	if err == nil {
		var report *chain.Report
		report, err = chain.AutoDedup(ctx, d.opts.Dir)
		if err == nil {
			for _, later := range report.Later {
				d.note("the space of the parent is given back in part only: %s", later.Why)
			}
		}
		if src, openErr := store.OpenFolder(d.opts.Dir); openErr == nil {
			if m, readErr := image.ReadManifest(src); readErr == nil {
				d.manifest = m
			}
		}
	}
	if err != nil {
		d.note("the space of the parent is not given back (%v): run stasis dedup %s", err, d.opts.Dir)
	}
}

// parentPath is the parent's folder as the new checkpoint's manifest names it.
func (d *dump) parentPath() string {
	if d.parent == nil {
		return ""
	}
	absolute, err := filepath.Abs(d.opts.Parent)
	if err != nil {
		return d.opts.Parent
	}
	if d.opts.Dir == "" {
		return absolute
	}
	dir, err := filepath.Abs(d.opts.Dir)
	if err != nil {
		return absolute
	}
	if relative, err := filepath.Rel(dir, absolute); err == nil {
		return relative
	}
	return absolute
}

// takeUp fetches the trackers that were kept since the parent.
func (d *dump) takeUp() error {
	state, fds, err := keeper.Take(d.tree[0])
	if errors.Is(err, keeper.ErrNone) {
		if d.parent != nil {
			d.note("no tracker was kept since the parent (--track-mem): all memory is compared with it")
		}
		return nil
	}
	if err != nil {
		d.withoutKeeper(err)
		return nil
	}
	d.kept = true
	if why := d.distrust(state); why != "" {
		for _, fd := range fds {
			unix.Close(fd)
		}
		if d.parent != nil {
			d.note("%s: all memory is compared with the parent", why)
		}
		return nil
	}
	for _, lost := range state.Lost {
		for at := lost.Begin; at < lost.End; at += proc.PageSize {
			d.dropped = append(d.dropped, capture.Dropped{PID: lost.PID, Range: proc.Range{Start: at, End: at + proc.PageSize}})
		}
	}
	d.adopted = make(map[identity]track.Tracker, len(fds))
	for i, p := range state.Processes {
		tracker, err := track.Resume(track.Kind(state.Tracker), d.injector, p.PID, fds[i])
		if err != nil {
			continue // the process has ended
		}
		d.adopted[identity{p.PID, p.Start}] = tracker
	}
	return nil
}

// identity tells a process from a later one with its pid.
type identity struct {
	pid   int
	start uint64
}

// distrust says why kept trackers are of no use for this dump, or "".
func (d *dump) distrust(state *keeper.State) string {
	switch {
	case d.parent == nil:
		return "there is no parent"
	case track.Kind(state.Tracker) != d.trackerKind:
		return fmt.Sprintf("the writes were tracked by %s, and this dump uses %s", state.Tracker, d.trackerKind)
	case state.Armed == "":
		return "a dump that used the tracker did not succeed"
	case state.Armed != d.parent.Manifest().ID:
		return fmt.Sprintf("the tracker knows what was written since %s, which is not the parent", state.Dir)
	}
	return ""
}

// startTracker gives a process a tracker: the one that was kept, or a new one,
// or none where the process cannot be tracked.
func (d *dump) startTracker(p *process) error {
	who := identity{p.task.PID, p.task.StartTime}
	if kept := d.adopted[who]; kept != nil {
		delete(d.adopted, who)
		if maps, err := proc.Smaps(who.pid); err == nil && kept.Follows(eligible(maps)) {
			p.tracker, p.looked = kept, make(map[proc.Range]bool)
			return nil
		}
		kept.Close()
		d.note("process %d (%s) has executed another program since the parent, or another userfaultfd has its memory: all of it is compared with the parent", who.pid, p.task.Comm)
	}
	if d.trackerKind == track.KindNone {
		return nil // all of it is copied during the freeze, once
	}
	tracker, err := track.Start(d.trackerKind, d.injector, who.pid)
	switch {
	case errors.Is(err, inject.ErrDispatched):
		return d.fail(StepArm, ErrProcess, fmt.Errorf("process %d (%s): %w; CRIU would lose that, and may hurt the process: it cannot be dumped", who.pid, p.task.Comm, inject.ErrDispatched))
	case errors.Is(err, track.ErrUnavailable), errors.Is(err, proc.ErrGone):
		return nil
	case err != nil:
		return err
	}
	p.tracker = tracker
	return nil
}

// noteForeign tells of memory that cannot be tracked because somebody else
// does something of the kind. It is copied during the freeze.
func (d *dump) noteForeign() {
	for pid, p := range d.processes {
		if tracker, ok := p.tracker.(*track.WriteProtect); ok && tracker.Foreign() > 0 {
			d.note("%d KiB of memory of process %d (%s) have a userfaultfd of another program: they are copied during the freeze", tracker.Foreign()>>10, pid, p.task.Comm)
		}
	}
}

// unknownPages visits the pages of a process that were not written since the
// parent, and that the parent does not have: memory that was CRIU's in the
// parent, because it was shared or locked then, and is Stasis' now. It looks at
// each mapping once.
func (d *dump) unknownPages(p *process, visit func(proc.Range)) error {
	if p.looked == nil {
		return nil
	}
	var unseen []proc.Range
	for _, m := range p.ours {
		if !p.looked[m.Range] {
			p.looked[m.Range] = true
			unseen = append(unseen, m.Range)
		}
	}
	return track.Unwritten(p.tracker, unseen, func(r proc.Range) { d.notInParent(p, r, visit) })
}

// lostPages visits the pages of a process that were not written since the
// parent, and that can't be read there: the parent is damaged, or its disk is,
// which was seen when pages beside them were compared with it. The process has
// them.
func (d *dump) lostPages(p *process, visit func(proc.Range)) error {
	if d.parent == nil {
		return nil
	}
	lost, found := d.writer.Lost(p.task.NSPID, p.lostSeen)
	p.lostSeen = found
	var ours []proc.Range
	for _, m := range p.ours {
		ours = append(ours, common([]proc.Range{m.Range}, lost)...)
	}
	if len(ours) == 0 {
		return nil
	}
	return track.Unwritten(p.tracker, ours, visit)
}

// noteUnread tells of what could not be read of the parent.
func (d *dump) noteUnread() {
	if d.parent == nil {
		return
	}
	if blocks, why := d.writer.Unread(); blocks > 0 {
		d.note("the parent is damaged (%d of its blocks cannot be read, the first: %v): what they held was copied from the process again; run stasis verify %s", blocks, why, d.opts.Parent)
	}
}

// allLooked says whether unknownPages has looked at everything in a range.
func (p *process) allLooked(r proc.Range) bool {
	if p.looked == nil {
		return true
	}
	i := sort.Search(len(p.ours), func(i int) bool { return p.ours[i].End > r.Start })
	for at := r.Start; at < r.End; i++ {
		if i == len(p.ours) || p.ours[i].Start > at || !p.looked[p.ours[i].Range] {
			return false
		}
		at = p.ours[i].End
	}
	return true
}

// notInParent visits the parts of a range that the parent does not have.
func (d *dump) notInParent(p *process, r proc.Range, visit func(proc.Range)) {
	label := p.task.NSPID
	has, known := d.inParent[label]
	if !known {
		if d.inParent == nil {
			d.inParent = make(map[int][]image.Range)
		}
		has = d.parent.Ranges(label)
		d.inParent[label] = has
	}
	from := sort.Search(len(has), func(i int) bool { return has[i].End > r.Start })
	for _, lacking := range image.Subtract([]image.Range{image.Range(r)}, has[from:]) {
		visit(proc.Range(lacking))
	}
}

func eligible(maps []proc.Mapping) (list []proc.Mapping) {
	for _, m := range maps {
		if capture.Eligible(m) {
			list = append(list, m)
		}
	}
	return list
}

// disarmKeeper takes the kept trackers out of use, before the first round
// protects pages anew: from here on what the keeper has is not all that was
// written since the parent. Trackers that are of no use are ended, as a mapping
// can have only one.
func (d *dump) disarmKeeper() {
	if !d.kept {
		return
	}
	d.disarmed = true
	root := d.tree[0]
	if d.adopted == nil {
		if err := keeper.Stop(root.PID, root.StartTime); err != nil {
			d.withoutKeeper(err)
		}
		return
	}
	if err := keeper.Disarm(root); err != nil {
		for who, tracker := range d.adopted {
			tracker.Close()
			delete(d.adopted, who)
		}
		d.withoutKeeper(err)
	}
}

// withoutKeeper does without trackers that cannot be had. What they guard stays
// theirs: it counts as written, and is not protected anew, so that they go on
// to be right for their parent.
func (d *dump) withoutKeeper(err error) {
	d.note("the process %s that tracks the writes is of no use (%v): all memory is copied, most of it during the freeze; end that process", keeper.Name, err)
}

// endTracking ends the trackers of a dump that failed after they were taken out
// of use: nobody has use for them any more.
func (d *dump) endTracking() {
	if d.disarmed && d.manifest == nil {
		_ = keeper.Stop(d.tree[0].PID, d.tree[0].StartTime) // the next dump tries again
	}
}

// keepTrackers hands the trackers over for the next dump, which has this one as
// its parent, or ends the tracking.
func (d *dump) keepTrackers() {
	root := d.tree[0]
	if !d.opts.Track {
		if d.kept {
			_ = keeper.Stop(root.PID, root.StartTime)
		}
		return
	}
	state := &keeper.State{
		Root: root.PID, Start: root.StartTime, Comm: root.Comm, Tracker: string(d.trackerKind),
		Armed: d.manifest.ID, Dir: d.opts.Dir, Since: d.manifest.Created,
	}
	if dir, err := filepath.Abs(d.opts.Dir); err == nil && d.opts.Dir != "" {
		state.Dir = dir
	}
	var fds []int
	for pid, p := range d.processes {
		if p.tracker == nil {
			continue
		}
		if fd := p.tracker.Fd(); fd >= 0 {
			state.Processes = append(state.Processes, keeper.Process{PID: pid, Start: p.task.StartTime})
			fds = append(fds, fd)
		}
	}
	if d.preDump {
		for _, lost := range d.dropped {
			state.Lost = append(state.Lost, keeper.Lost{PID: lost.PID, Begin: lost.Start, End: lost.End})
		}
	}
	if len(fds) == 0 {
		d.note("no process of the tree can be tracked: the next dump compares all memory with this one")
		return
	}
	if err := keeper.Put(state, fds); err != nil {
		d.note("the trackers cannot be kept (%v): the next dump compares all memory with this one", err)
	}
}

// note adds something to the result that the user did not expect, perhaps.
func (d *dump) note(format string, args ...any) {
	d.notes = append(d.notes, fmt.Sprintf(format, args...))
}

// writePreDump completes a pre-dump: the pages that are there now, as the
// rounds have them. A page that was written meanwhile is in the checkpoint as it
// was, or not at all; its tracker knows.
func (d *dump) writePreDump() error {
	d.present = make(map[int][]image.Range)
	for pid, p := range d.processes {
		if p.tracker == nil {
			continue
		}
		if err := d.notePages(pid, p); err != nil && !errors.Is(err, proc.ErrGone) {
			return err
		}
	}
	d.sortPresent()
	d.frozen = time.Now() // which it never was; the manifest has it as the time of the pre-dump
	d.thawed = d.frozen
	return d.publish()
}

func (d *dump) notePages(pid int, p *process) error {
	pagemap, err := proc.OpenPagemap(pid)
	if err != nil {
		return err
	}
	defer pagemap.Close()
	label := d.label(pid)
	for _, m := range p.ours {
		if err := pagemap.Scan(m.Range, func(run proc.Run) { d.notePresent(label, run.Range) }); err != nil {
			return err
		}
	}
	return nil
}

// rearm begins the next round of the trackers in the freeze, when all that was
// written is known: the next dump begins with what is written from now on.
func (d *dump) rearm(can func(track.Kind) bool) {
	if !d.opts.Track {
		return
	}
	for pid, ranges := range d.hidden {
		p := d.processes[pid]
		if p.tracker == nil || !can(p.tracker.Kind()) {
			continue
		}
		if err := p.tracker.Rearm(ranges); err != nil {
			p.tracker.Close()
			p.tracker = nil // so that it is not kept
		}
	}
}

// besideCRIU says whether a tracker is armed while CRIU still dumps the state. What
// CRIU writes into the tree for a moment then counts as written: a page or two more
// in the next dump, for some milliseconds less of standing still. Soft-dirty bits
// are cleared for all of the process, CRIU's pages in it included.
func besideCRIU(k track.Kind) bool { return k == track.KindUserfaultfd }

func afterCRIU(k track.Kind) bool { return !besideCRIU(k) }

// pausedFor is how long the tree stood still.
func (d *dump) pausedFor() time.Duration {
	if d.preDump {
		return 0
	}
	return d.thawed.Sub(d.frozen)
}
