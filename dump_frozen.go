package stasis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"stasis/internal/capture"
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/proc"
)

// hideMemory decides, with the tree frozen, which memory CRIU must not see:
// what Stasis has chosen while the tree ran and is still there unchanged in
// kind. Anything else stays with CRIU, which is always right.
func (d *dump) hideMemory() error {
	tree, err := proc.Tree(d.opts.PID)
	if err != nil {
		return err
	}
	d.tree = tree
	d.hidden = make(map[int][]proc.Range)
	if d.engine == EngineCRIU {
		return nil
	}
	if d.forked() {
		// Pages are shared that were not before: choose anew.
		if err := d.follow(); err != nil {
			return err
		}
	}
	for _, task := range d.tree {
		p := d.processes[task.PID]
		if p == nil || p.task.StartTime != task.StartTime {
			continue
		}
		now, err := d.frozenMappings(p)
		if err != nil {
			return err
		}
		p.frozen = now
		if ranges := stillOurs(p, now); len(ranges) > 0 {
			d.hidden[task.PID] = ranges
			d.describeMappings(p, now, ranges)
		}
	}
	if d.engine == EngineBlind {
		d.hidden = d.blind.Hide(d.hidden)
	}
	return nil
}

// forked says whether the frozen tree has processes that no round has seen.
func (d *dump) forked() bool {
	for _, task := range d.tree {
		if p := d.processes[task.PID]; !task.Zombie() && (p == nil || p.task.StartTime != task.StartTime) {
			return true
		}
	}
	return false
}

// frozenMappings lists the mappings of a frozen process. What counts besides and
// the quick list does not show are flags, which hardly ever change: when the
// amount of locked memory has changed, or the dump before this one has met another
// change, the slow list is read.
func (d *dump) frozenMappings(p *process) ([]proc.Mapping, error) {
	task, err := proc.ReadTask(p.task.PID)
	if err != nil {
		return nil, err
	}
	if d.exact || task.LockedKB != lockedKB(p.maps) {
		return proc.Smaps(task.PID)
	}
	return proc.Maps(task.PID)
}

// stillOurs lists the addresses of a frozen process that were chosen while it
// ran and that are still private and anonymous.
func stillOurs(p *process, now []proc.Mapping) []proc.Range {
	var ranges []proc.Range
	i := 0
	for _, m := range now {
		if !capture.Eligible(m) {
			continue
		}
		for i < len(p.ours) && p.ours[i].End <= m.Start {
			i++
		}
		for j := i; j < len(p.ours) && p.ours[j].Start < m.End; j++ {
			r := proc.Range{Start: max(m.Start, p.ours[j].Start), End: min(m.End, p.ours[j].End)}
			ranges = append(ranges, r)
		}
	}
	return ranges
}

func lockedKB(maps []proc.Mapping) uint64 {
	var total uint64
	for _, m := range maps {
		if m.Has("lo") {
			total += m.Len() >> 10
		}
	}
	return total
}

// copyLast begins to find the pages that changed since the last round and to
// copy them into RAM. CRIU dumps the state at the same time.
//
// Executable memory is copied before CRIU is let on: CRIU runs code in the
// processes through an instruction that it puts into their executable memory
// for a moment.
func (d *dump) copyLast(ctx context.Context) error {
	d.present = make(map[int][]image.Range)
	d.joinDropped()
	code, others := d.splitCode()
	if err := d.copyChanged(ctx, code); err != nil {
		return err
	}
	d.lookAtSettings()
	d.last = inBackground(func() (none, error) {
		err := d.copyChanged(ctx, others)
		if err == nil {
			d.rearm(besideCRIU)
		}
		return none{}, err
	})
	return nil
}

// splitCode parts the hidden memory into what overlaps executable memory and
// the rest.
func (d *dump) splitCode() (code, others map[int][]proc.Range) {
	code, others = make(map[int][]proc.Range), make(map[int][]proc.Range)
	for pid, ranges := range d.hidden {
		executable := executableOf(d.processes[pid].frozen)
		for _, r := range ranges {
			into := others
			if executable(r) {
				into = code
			}
			into[pid] = append(into[pid], r)
		}
	}
	return code, others
}

// copyChanged copies the pages in some hidden memory that changed since the
// last round.
func (d *dump) copyChanged(ctx context.Context, memory map[int][]proc.Range) error {
	var pages []changed
	for pid, ranges := range memory {
		found, err := d.scanFrozen(pid, ranges)
		if err != nil {
			return err
		}
		pages = append(pages, found...)
	}
	return d.copyFrozen(ctx, pages)
}

// changed is a run of pages that has to be copied during the freeze.
type changed struct {
	pid int
	proc.Range
}

// copyFrozen copies pages of the frozen tree into RAM.
func (d *dump) copyFrozen(ctx context.Context, pages []changed) error {
	if len(pages) == 0 {
		return nil
	}
	copier := capture.New(ctx, d.keepOf(d.round), capture.Options{Frozen: true, Label: d.label})
	shared := make(map[int]func(proc.Range) bool)
	for _, p := range pages {
		if shared[p.pid] == nil {
			var ours []proc.Mapping
			if known := d.processes[p.pid]; known != nil {
				ours = known.ours
			}
			shared[p.pid] = sharedOf(ours)
		}
		copier.Add(p.pid, p.Range, shared[p.pid](p.Range))
	}
	bytes, err := copier.Wait()
	d.dirty.Bytes += int64(bytes)
	return err
}

// scanFrozen notes which pages a frozen process has in some ranges and returns
// those that changed since the last round.
func (d *dump) scanFrozen(pid int, ranges []proc.Range) ([]changed, error) {
	var pages []changed
	p, label := d.processes[pid], d.label(pid)
	add := func(r proc.Range) { pages = append(pages, changed{pid, r}) }
	lost, _ := d.writer.Lost(label, p.lostSeen)
	err := p.look(ranges, func(run proc.Run, written bool) {
		d.notePresent(label, run.Range)
		if written {
			add(run.Range)
			return
		}
		for _, lost := range d.droppedIn(pid, run.Range) {
			add(lost)
		}
		if !p.allLooked(run.Range) {
			d.notInParent(p, run.Range, add)
		}
		for _, r := range common([]proc.Range{run.Range}, lost) {
			add(r)
		}
	})
	return pages, err
}

// look visits the pages of a process in some ranges. Without a tracker all of
// them count as written.
func (p *process) look(ranges []proc.Range, visit func(r proc.Run, written bool)) error {
	if p.tracker != nil {
		return p.tracker.Look(ranges, visit)
	}
	pagemap, err := proc.OpenPagemap(p.task.PID)
	if err != nil {
		return err
	}
	defer pagemap.Close()
	for _, r := range ranges {
		if err := pagemap.Scan(r, func(run proc.Run) { visit(run, true) }); err != nil {
			return err
		}
	}
	return nil
}

// droppedIn lists what of a range no round has copied although it is not known to
// be written: it could not be read, or was left to the freeze.
func (d *dump) droppedIn(pid int, r proc.Range) (pages []proc.Range) {
	i := sort.Search(len(d.dropped), func(i int) bool {
		lost := d.dropped[i]
		return lost.PID > pid || lost.PID == pid && lost.End > r.Start
	})
	for ; i < len(d.dropped) && d.dropped[i].PID == pid && d.dropped[i].Start < r.End; i++ {
		pages = append(pages, proc.Range{Start: max(r.Start, d.dropped[i].Start), End: min(r.End, d.dropped[i].End)})
	}
	return pages
}

// joinDropped sorts the list of what was not copied, and joins what touches.
func (d *dump) joinDropped() {
	slices.SortFunc(d.dropped, func(a, b capture.Dropped) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Start, b.Start))
	})
	joined := d.dropped[:0]
	for _, lost := range d.dropped {
		if n := len(joined); n > 0 && joined[n-1].PID == lost.PID && joined[n-1].End >= lost.Start {
			joined[n-1].End = max(joined[n-1].End, lost.End)
		} else {
			joined = append(joined, lost)
		}
	}
	d.dropped = joined
}

func (d *dump) notePresent(label int, r proc.Range) {
	list := d.present[label]
	if n := len(list); n > 0 && list[n-1].End == r.Start {
		list[n-1].End = r.End
		return
	}
	d.present[label] = append(list, image.Range(r))
}

// sortPresent puts the present pages of each process in address order: memory
// with code in it was noted first.
func (d *dump) sortPresent() {
	for _, list := range d.present {
		slices.SortFunc(list, func(a, b image.Range) int { return cmp.Compare(a.Start, b.Start) })
	}
}

// sharedOf answers whether a range lies in a mapping with pages that another
// process has as well, or in one that was not looked at.
func sharedOf(ours []proc.Mapping) func(proc.Range) bool {
	return func(r proc.Range) bool {
		m := covering(ours, r.Start)
		return m == nil || m.SharedAnon > 0
	}
}

// executableOf answers whether a range overlaps executable memory.
func executableOf(maps []proc.Mapping) func(proc.Range) bool {
	var code []proc.Range
	for _, m := range maps {
		if len(m.Perms) > 2 && m.Perms[2] == 'x' {
			code = append(code, m.Range)
		}
	}
	return func(r proc.Range) bool {
		for _, c := range code {
			if c.Start < r.End && r.Start < c.End {
				return true
			}
		}
		return false
	}
}

// finishLast waits until the last pages are in RAM, and checks that CRIU would
// restore what was hidden from it as Stasis does.
func (d *dump) finishLast(ctx context.Context) error {
	_, err := d.last()
	d.last = nil
	if err != nil {
		return err
	}
	d.sortPresent()
	if d.lazy != nil {
		err = d.copyMissing(ctx)
	}
	d.noteSettings()
	d.rearm(afterCRIU)
	d.dirty = roundFigures(d.dirty.Bytes, time.Since(d.frozen))
	return errors.Join(err, d.checkHidden())
}

// copyMissing copies what a lazy dump left out and Stasis has not chosen, such
// as stacks and pages shared since fork: nobody else has them. Then it tells
// CRIU that its pages are not wanted.
func (d *dump) copyMissing(ctx context.Context) error {
	var pages []changed
	for _, task := range d.tree {
		if task.Zombie() {
			continue
		}
		label := d.label(task.PID)
		missing, err := criu.Missing(d.work.Path(), label)
		if err != nil {
			return err
		}
		var all []image.Range
		for _, r := range missing {
			all = append(all, image.Range(r))
		}
		extra := image.Subtract(all, d.present[label])
		for _, r := range extra {
			pages = append(pages, changed{task.PID, proc.Range(r)})
		}
		d.present[label] = append(d.present[label], extra...)
	}
	d.sortPresent()
	if err := d.copyFrozen(ctx, pages); err != nil {
		return err
	}
	return d.lazy.End()
}

// common is what lies in both. Both are sorted.
func common(a []proc.Range, b []image.Range) []proc.Range {
	var both []proc.Range
	for _, r := range a {
		from := sort.Search(len(b), func(i int) bool { return b[i].End > r.Start })
		for _, other := range b[from:] {
			if other.Start >= r.End {
				break
			}
			both = append(both, proc.Range{Start: max(r.Start, other.Start), End: min(r.End, other.End)})
		}
	}
	return both
}

// checkHidden compares what was hidden with CRIU's own idea of lazy memory. They
// differ when a mapping was locked, or marked to be wiped on fork, between the
// last round and the freeze. The dump is made anew then, as where CRIU's list of
// the mappings is none that could be restored; see [Dump].
func (d *dump) checkHidden() error {
	for _, task := range d.tree {
		if task.Zombie() {
			continue
		}
		lazy, err := criu.LazyRanges(d.work.Path(), d.label(task.PID))
		if errors.Is(err, criu.ErrTorn) {
			return fmt.Errorf("%w: process %d: %w; try again", errFlagsChanged, task.PID, err)
		}
		if err != nil {
			return err
		}
		if err := checkRanges(task.PID, d.hidden[task.PID], lazy); err != nil {
			return err
		}
	}
	return nil
}

// checkRanges looks whether all that was hidden of a process is lazy for CRIU.
func checkRanges(pid int, hidden, lazy []proc.Range) error {
	i := 0
	for _, r := range hidden {
		for i < len(lazy) && lazy[i].End <= r.Start {
			i++
		}
		if i == len(lazy) || lazy[i].Start > r.Start || lazy[i].End < r.End {
			return fmt.Errorf("%w: memory %#x-%#x of process %d is of another kind; try again, or use engine %s", errFlagsChanged, r.Start, r.End, pid, EngineCRIU)
		}
	}
	return nil
}
