//go:build linux && (amd64 || arm64)

package pager

import (
	"slices"
	"sync"

	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// fault is a thread asleep on a page that is not there.
type fault struct {
	t    *task
	addr uint64 // of the page
}

// queue hands faults from the readers of events to the workers. It holds at
// most one fault for each thread of the tree, so it needs no limit.
type queue struct {
	mu     sync.Mutex
	some   *sync.Cond // of mu
	list   []fault
	closed bool
}

func (q *queue) init() { q.some = sync.NewCond(&q.mu) }

func (q *queue) push(f ...fault) {
	q.mu.Lock()
	q.list = append(q.list, f...)
	q.mu.Unlock()
	if len(f) == 1 {
		q.some.Signal()
	} else {
		q.some.Broadcast()
	}
}

// pop waits for a fault; false means that the pager was closed.
func (q *queue) pop() (fault, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.list) == 0 && !q.closed {
		q.some.Wait()
	}
	if q.closed {
		return fault{}, false
	}
	f := q.list[0]
	q.list = slices.Delete(q.list, 0, 1)
	return f, true
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.some.Broadcast()
}

// worker copies. It keeps the block that it read last: threads of a program
// tend to want the same one at the same time.
type worker struct {
	p      *Pager
	buffer reader.Buffer
	block  int // what data is of, -1 for nothing
	data   []byte
	pieces []image.Piece // space

	next, end int // blocks that are this worker's to fill, guarded by Pager.mu
}

func (p *Pager) newWorker() *worker { return &worker{p: p, block: -1} }

// read returns the verified pages of a block, valid until the next read.
func (w *worker) read(block int) ([]byte, error) {
	if w.block == block {
		return w.data, nil
	}
	w.block = -1
	data, err := w.p.src.ReadBlock(block, &w.buffer)
	if err != nil {
		return nil, err
	}
	w.block, w.data = block, data
	return data, nil
}

// serveFaults answers faults until the pager is closed.
func (p *Pager) serveFaults() {
	w := p.newWorker()
	for {
		f, ok := p.faults.pop()
		if !ok {
			return
		}
		w.serve(f)
	}
}

// serve answers a fault: the page that is asked for first, then the rest of its
// block, which costs little once it is read and decompressed.
func (w *worker) serve(f fault) {
	p, t := w.p, f.t
	t.mu.RLock()
	src, block, page, kind := t.find(f.addr)
	t.mu.RUnlock()
	p.noteTouched(f, block, kind)
	if kind != image.Data {
		blank, err := t.zero(f.addr)
		switch {
		case err != nil:
			p.fail(err)
		case !blank:
			p.faults.push(f)
		default:
			t.wake(f.addr)
		}
		return
	}
	switch p.claim(block, f) {
	case claimedNow:
		if w.putPage(f, src, block, page) {
			w.fill(block, t)
		}
	case claimedBefore:
		// It came while another worker was about to fill the block and was
		// woken by that. Asked a second time, it was not.
		if p.asked(f) {
			w.putPage(f, src, block, page)
		} else {
			t.wake(f.addr)
		}
	}
}

// putPage puts the page of a fault in place and wakes who asked for it. It
// reports false, with the block given up, if that can't be done.
func (w *worker) putPage(f fault, src uint64, block int, page uint32) bool {
	data, err := w.read(block)
	if err == nil {
		err = f.t.put(src, data[page*pageSize:][:pageSize])
	}
	if err != nil {
		w.p.spoil(block, err)
		return false
	}
	f.t.wake(f.addr)
	return true
}

// wake makes the threads that sleep on a page try again. Copies wake them by
// themselves, but not where the page was there already or has another place now.
func (t *task) wake(addr uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if !t.gone {
		_ = t.fd.Wake(addr, pageSize)
	}
}
