//go:build linux && (amd64 || arm64)

package pager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"stasis/internal/image"
)

// errClosed ends a Fill whose pager was closed.
var errClosed = errors.New("the pager was closed before all memory was in place")

// Fill puts all memory in place. It waits until CRIU has handed over every
// process that has memory, copies every block into every task, then disarms the
// tasks and closes their userfaultfds: the memory is complete and the pager has
// nothing left to do. Whoever else holds copies of the descriptors should drop
// them now.
//
// With an error the memory is incomplete. The tasks stay armed, and who touches
// what is missing is served as before, if it can be.
func (p *Pager) Fill(ctx context.Context) error {
	if err := p.waitArrived(ctx); err != nil {
		return err
	}
	wakeUp := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.moved.Broadcast()
	})
	defer wakeUp()

	p.begin()
	workers := p.o.Workers
	if p.o.Lazy {
		workers = max(1, workers-1)
	} else {
		p.planBulk()
	}
	var all sync.WaitGroup
	for range workers {
		all.Go(func() { p.sweep(ctx) })
	}
	all.Wait()
	if err := p.outcome(ctx); err != nil {
		return err
	}
	p.disarm()
	return nil
}

// disarm lets the kernel serve the memory again, which is complete.
//
// A tree that stands still is disarmed mapping by mapping: at once, whoever else
// holds copies of the descriptors. In one that runs, a mapping can have become a
// larger one since it was listed, of which only a part would be disarmed: it is two
// then, and the program's next mremap(2) of it fails, or moves one of them. The end
// of the last copy disarms all mappings of a process in one step.
func (p *Pager) disarm() {
	p.mu.Lock()
	p.filled = true
	p.mu.Unlock()
	if p.o.OnComplete != nil {
		p.o.OnComplete()
	}
	for _, t := range p.current() {
		if !p.o.Lazy {
			t.disarm()
		}
		p.end(t)
	}
}

// waitArrived waits for all processes that have memory. CRIU hands them over
// before its notification post-restore; its last word on the socket comes later.
func (p *Pager) waitArrived(ctx context.Context) error {
	if err := p.Ready(ctx); err != nil {
		return err
	}
	select {
	case <-p.arrived:
		return p.Err()
	default:
	}
	select {
	case <-p.arrived:
	case <-p.received:
	case <-ctx.Done():
		return fmt.Errorf("cannot fill the memory: CRIU has not handed over all processes: %w", context.Cause(ctx))
	case <-p.stop:
		return errClosed
	}
	if err := p.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.awaits) > 0 {
		missing := slices.Sorted(maps.Keys(p.awaits))
		return fmt.Errorf("cannot fill the memory: CRIU ended before it handed over the memory of the processes %v: see its log", missing)
	}
	return nil
}

// begin forgets which blocks are done: faults were served before all tasks were
// there, and a block can have pages for several.
func (p *Pager) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &p.blocks
	for i, s := range b.states {
		if s == done {
			b.states[i] = todo
		}
	}
	b.next = 0
	p.filling = true
	p.joined++ // those that are busy look at all tasks again
}

// outcome says how the workers have ended.
func (p *Pager) outcome(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.err != nil:
		return p.err
	case p.closed:
		return errClosed
	case !p.complete():
		return fmt.Errorf("cannot fill the memory: %w", context.Cause(ctx))
	}
	return nil
}

// complete reports whether nothing is left to do, with p.mu held.
func (p *Pager) complete() bool {
	return p.blocks.busy == 0 && !slices.Contains(p.blocks.states, todo)
}

// isFilled reports whether all memory is in place. A child that is born then lacks
// nothing.
func (p *Pager) isFilled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.filled
}

// sweep fills blocks until none is left.
func (p *Pager) sweep(ctx context.Context) {
	w := p.newWorker()
	for {
		i, ok := p.nextBlock(ctx, w)
		if !ok {
			return
		}
		if _, err := w.read(i); err != nil {
			p.spoil(i, err)
			return
		}
		w.fill(i, nil)
		p.tell()
	}
}

// nextBlock takes the next block to fill: one near a recent fault, else the
// next in order. It waits while others are busy, since what they do can put a
// block back; false means that all is done, or that there is no point in going on.
func (p *Pager) nextBlock(ctx context.Context, w *worker) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &p.blocks
	for p.err == nil && !p.closed && ctx.Err() == nil {
		for n := len(b.hot); n > 0; n = len(b.hot) {
			i := b.hot[n-1]
			b.hot = b.hot[:n-1]
			if b.states[i] == todo {
				return b.take(i), true
			}
		}
		for {
			for ; w.next < w.end; w.next++ {
				if b.states[w.next] == todo {
					return b.take(w.next), true
				}
			}
			if b.next == len(b.states) {
				break
			}
			w.next, w.end = b.next, min(b.next+p.run(), len(b.states))
			b.next = w.end
		}
		if b.busy == 0 {
			return 0, false
		}
		p.moved.Wait()
	}
	return 0, false
}

// run is how many blocks in a row a worker takes. Those of a huge page should
// come from one worker: two that are at one at once both clear it.
func (p *Pager) run() int {
	if p.o.Lazy {
		return 1
	}
	return hugePage / image.MaxBlock
}

// fill copies a busy block, which w has read, into every task that has pages of
// it, and releases it. Before Fill has begun it serves the task alone that asked
// for it (first): a block can have pages of several processes, and the others may
// not have armed their memory yet. If a task joined meanwhile, it goes round again: that
// child lacks what its parent lacked when it was born. Copying twice is
// harmless, a page that is there stays.
func (w *worker) fill(i int, first *task) {
	p := w.p
	w.pieces = p.src.Pieces(i, w.pieces[:0])
	for {
		p.mu.Lock()
		joined, tasks := p.joined, []*task{first}
		if p.filling {
			tasks = slices.Clone(p.tasks)
		}
		p.mu.Unlock()
		if err := w.putPieces(tasks, w.pieces); err != nil {
			p.spoil(i, err)
			return
		}
		p.mu.Lock()
		if p.joined == joined {
			p.release(i, done)
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
	}
}

func (w *worker) putPieces(tasks []*task, pieces []image.Piece) error {
	for _, piece := range pieces {
		from := uint64(piece.First) * pageSize
		data := w.data[from:][:uint64(piece.Pages)*pageSize]
		for _, t := range tasks {
			if t.origin != piece.PID {
				continue
			}
			if err := t.put(piece.Addr, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// tell reports progress.
func (p *Pager) tell() {
	if p.o.OnProgress == nil {
		return
	}
	p.report.Lock()
	defer p.report.Unlock()
	p.o.OnProgress(p.Progress())
}

// reap ends the children that have ended: a shell forks thousands, and nothing
// says that they are gone. It looks at every 64th birth.
func (p *Pager) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.joined%64 != 0 {
		return
	}
	tasks := slices.Clone(p.tasks)
	p.running.Go(func() {
		for _, t := range tasks {
			if t.forked && t.ended() {
				p.end(t)
			}
		}
	})
}

// ended asks the kernel whether the address space is still there.
func (t *task) ended() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return !t.gone && t.fd.Gone(1<<20)
}
