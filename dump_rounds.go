package stasis

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"stasis/internal/capture"
	"stasis/internal/image"
	"stasis/internal/proc"
	"stasis/internal/track"
)

const (
	// copyRate is a low estimate of how many bytes a second the last copy of a
	// frozen tree manages. It turns MaxPause into bytes.
	copyRate = 4 << 30

	// roundNice is how much the workers that copy and compress stand back
	// while the program runs: it gets three times the share of a busy CPU.
	roundNice = 5
)

// arm begins to track the writes of every process of the tree.
func (d *dump) arm() error {
	d.disarmKeeper()
	d.processes = make(map[int]*process)
	return d.follow()
}

// follow reads the tree anew and arms the processes that are new. One that
// cannot be tracked is copied during the freeze instead.
func (d *dump) follow() error {
	tree, err := proc.Tree(d.opts.PID)
	if err != nil {
		return err
	}
	d.tree = tree
	for _, task := range tree {
		known := d.processes[task.PID]
		if task.Zombie() || known != nil && known.task.StartTime == task.StartTime || borrowsMemory(task) {
			continue
		}
		if known != nil {
			known.close() // the pid is another process' now
		}
		p := &process{task: task}
		if d.engine != EngineCRIU {
			if err := d.startTracker(p); err != nil {
				return err
			}
		}
		d.processes[task.PID] = p
	}
	return d.selectMemory()
}

// borrowsMemory says whether a process still has the memory of its parent, as after
// vfork(2). Two trackers of one address space would take each other's writes away.
func borrowsMemory(task *proc.Task) bool {
	same, err := proc.SameMemory(task.PPID, task.PID)
	return err == nil && same
}

// close ends the tracking of a process, if there is any.
func (p *process) close() {
	if p.tracker != nil {
		p.tracker.Close()
		p.tracker = nil
	}
}

// selectMemory reads the mappings of the tree and chooses those that Stasis
// copies.
func (d *dump) selectMemory() error {
	var tree []capture.Process
	for pid, p := range d.processes {
		maps, err := proc.Smaps(pid)
		if err != nil && !errors.Is(err, proc.ErrGone) {
			return err
		}
		p.maps = maps
		tree = append(tree, capture.Process{PID: pid, Mappings: maps})
	}
	if d.engine == EngineCRIU {
		return nil
	}
	ours := capture.Select(tree)
	for pid, p := range d.processes {
		p.ours = ours[pid]
	}
	return nil
}

// copyRounds copies all memory, then what was written meanwhile, for as long as
// another round pays.
func (d *dump) copyRounds(ctx context.Context) error {
	p := pace{enough: int64(d.opts.MaxPause.Seconds() * copyRate), buffer: int64(d.opts.FinalBuffer)}
	if d.outrun(p) {
		d.expected = int64(d.opts.FinalBuffer)
		return d.leaveToFreeze()
	}
	for to := intoCheckpoint; d.round < d.opts.MaxRounds; {
		if d.round > 0 {
			if to != intoRAM { // else too little time has passed for new mappings to matter
				if err := d.follow(); err != nil {
					return err
				}
			}
			pending := d.pending()
			if pending != unknown {
				d.expected = pending
			}
			if to = p.next(d.rounds, to, pending, d.roomInRAM()); to == noRound {
				break
			}
		}
		if err := d.copyRound(ctx, to); err != nil {
			return err
		}
		d.expected = p.enough
	}
	d.noteForeign()
	return nil
}

// roomInRAM is how many bytes rounds into RAM and the freeze may still keep there;
// nothing for a dump that has no freeze, and where a process stands still for each
// round.
func (d *dump) roomInRAM() int64 {
	if d.preDump {
		return 0
	}
	for _, p := range d.processes {
		if p.direct {
			return 0
		}
	}
	return int64(d.inRAM().Room())
}

// inRAM is where the last pages are kept until the tree runs again.
func (d *dump) inRAM() *capture.Buffer {
	if d.buffer == nil {
		d.buffer = capture.NewBuffer(d.opts.FinalBuffer, d.writer.PutPages)
	}
	return d.buffer
}

// prepareBuffer gets the RAM for the last pages while the tree runs, for some
// more than is known to be written: the tree goes on until the freeze.
func (d *dump) prepareBuffer() {
	d.inRAM().Prepare(int(d.expected+d.expected/4) + 1<<20)
}

// pending is how many bytes a round would copy if it began now, or unknown.
func (d *dump) pending() int64 {
	var total uint64
	for _, p := range d.processes {
		if p.tracker == nil {
			continue // a round does not copy any of it
		}
		bytes, known := track.Pending(p.tracker, p.ours)
		if !known {
			return unknown
		}
		total += bytes
	}
	return int64(total)
}

// outrun says whether the program is known to write so fast that no round pays,
// not even the first: by what it wrote since the parent, and by how fast that was
// copied.
func (d *dump) outrun(p pace) bool {
	if d.parent == nil || d.preDump {
		return false
	}
	for _, process := range d.processes {
		if process.looked == nil {
			return false // it was not tracked since the parent
		}
	}
	m := d.parent.Manifest()
	thawed := m.Created.Add(time.Duration(m.Figures.PauseUS) * time.Microsecond)
	return p.hopeless(d.pending(), d.memoryBytes(), time.Since(thawed), fastest(m, p.buffer))
}

// leaveToFreeze begins a round, and has the pages that it finds copied while the
// tree is frozen.
func (d *dump) leaveToFreeze() error {
	err := d.visitWritten(func(pid int, r proc.Range, _ bool) {
		d.dropped = append(d.dropped, capture.Dropped{PID: pid, Range: r})
	})
	d.noteForeign()
	return err
}

// copyRound copies what was written since the last round, at first everything.
func (d *dump) copyRound(ctx context.Context, to target) (err error) {
	var bytes int64
	begun, round := time.Now(), d.round
	d.spans.begin("dump.round", attribute.Int("stasis.round", round))
	defer func() { d.spans.end(err, attribute.Int64("stasis.bytes", bytes)) }()
	copier := capture.New(ctx, d.sinkFor(round, to), capture.Options{Label: d.label, Nice: roundNice + d.opts.Nice})
	err = d.visitWritten(copier.Add)
	copied, copyErr := copier.Wait()
	d.dropped = append(d.dropped, copier.Dropped()...)
	if err = errors.Join(err, copyErr); err != nil {
		return err
	}
	bytes = int64(copied)
	d.round++
	d.rounds = append(d.rounds, roundFigures(bytes, time.Since(begun)))
	return nil
}

// visitWritten begins a round of all trackers, and visits what was written since
// the last one.
func (d *dump) visitWritten(visit func(pid int, r proc.Range, shared bool)) (err error) {
	for pid, p := range d.processes {
		if p.tracker == nil {
			continue
		}
		shared := sharedOf(p.ours)
		add := func(r proc.Range) { visit(pid, r, shared(r)) }
		roundErr := d.unknownPages(p, add)
		if roundErr == nil {
			roundErr = d.lostPages(p, add)
		}
		if roundErr == nil {
			roundErr = d.roundOf(p, add)
		}
		if roundErr != nil && !errors.Is(roundErr, proc.ErrGone) {
			err = errors.Join(err, roundErr)
		}
	}
	return err
}

func roundFigures(bytes int64, took time.Duration) image.Round {
	return image.Round{Pages: bytes / image.PageSize, Bytes: bytes, US: took.Microseconds()}
}

// sinkFor writes blocks of a round into the checkpoint, or keeps them in RAM.
func (d *dump) sinkFor(round int, to target) capture.Sink {
	put := d.keepOf(round)
	if to == intoCheckpoint {
		put = func(b image.PageBlock) error { return d.writer.PutPages(round, b) }
	}
	total := d.memoryBytes()
	return func(b image.PageBlock) error {
		if err := put(b); err != nil {
			return err
		}
		if d.opts.Progress != nil {
			raw, _ := d.writer.Written()
			d.report(Progress{Step: StepCopy, Round: round, Done: raw, Total: max(total, raw)})
		}
		return nil
	}
}

// keepOf keeps blocks of a round in RAM.
func (d *dump) keepOf(round int) capture.Sink {
	return func(b image.PageBlock) error { return d.buffer.Put(round, b) }
}

func (d *dump) memoryBytes() int64 {
	var total uint64
	for _, p := range d.processes {
		for _, m := range p.ours {
			total += m.AnonBytes + m.Swapped
		}
	}
	return int64(total)
}

// label is the pid that a process has inside, by which CRIU's images and the
// index of the checkpoint name it.
func (d *dump) label(pid int) int {
	if p := d.processes[pid]; p != nil {
		return p.task.NSPID
	}
	return pid
}
