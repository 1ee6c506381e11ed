//go:build linux && (amd64 || arm64)

package pager

import "stasis/internal/image"

// hotRun is how many blocks behind a faulting one go to the front of the fill:
// 2 MiB.
const hotRun = 8

// state of a block.
type state uint8

const (
	todo state = iota
	busy       // a worker is at it
	done       // every task that needs it has it
	bad        // can't be read or put in place: never touched again
)

// blockTable is how far the blocks are. All of it is guarded by Pager.mu.
type blockTable struct {
	states      []state
	bytes       []int64 // what a block brings to its tasks
	done, total int64   // bytes
	counted     []bool  // its bytes are in done
	next        int     // the fill has passed all blocks before this one
	hot         []int   // to be filled first, last one first
	busy        int     // how many are busy
	parked      map[int][]fault
	woken       map[fault]bool // faults in blocks that are done, answered by a mere wake
}

func (b *blockTable) init(src Source) {
	n := src.Blocks()
	b.states, b.counted, b.bytes = make([]state, n), make([]bool, n), make([]int64, n)
	b.parked, b.woken = map[int][]fault{}, map[fault]bool{}
	for i := range n {
		b.bytes[i] = src.Bytes(i)
		b.total += b.bytes[i]
	}
}

// take makes a block busy.
func (b *blockTable) take(i int) int {
	b.states[i] = busy
	b.busy++
	return i
}

// claim is what a fault can get of a block.
type claim uint8

const (
	claimedNow    claim = iota // it is the caller's to fill
	claimedBefore              // it is filled
	claimedOther               // another worker has it: the fault will come back; or it is bad, and the thread sleeps on
)

// claim takes a block for the sake of a fault, and its neighbours to the front.
func (p *Pager) claim(i int, f fault) claim {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &p.blocks
	switch b.states[i] {
	case busy:
		b.parked[i] = append(b.parked[i], f)
		return claimedOther
	case bad:
		return claimedOther
	case done:
		return claimedBefore
	}
	for n := min(i+hotRun, len(b.states)-1); n > i; n-- {
		if b.states[n] == todo {
			b.hot = append(b.hot, n)
		}
	}
	b.take(i)
	return claimedNow
}

// asked reports whether the same fault in a filled block was answered by a mere wake before.
func (p *Pager) asked(f fault) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocks.woken[f] {
		delete(p.blocks.woken, f)
		return true
	}
	if len(p.blocks.woken) > 4096 {
		clear(p.blocks.woken)
	}
	p.blocks.woken[f] = true
	return false
}

// again puts the blocks of some pages of a process back to be filled.
func (p *Pager) again(origin int, start, end uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &p.blocks
	for addr := start; addr < end; addr += pageSize {
		i, _, kind := p.src.Find(origin, addr)
		if kind == image.Data && b.states[i] == done {
			b.states[i] = todo
			b.hot = append(b.hot, i)
		}
	}
	p.joined++ // and those that are busy: look at all tasks again
	p.moved.Broadcast()
}

// release sets a busy block's new state and lets the faults that waited for it go on.
func (p *Pager) release(i int, s state) {
	b := &p.blocks
	b.states[i] = s
	b.busy--
	if s == done {
		if !b.counted[i] {
			b.counted[i] = true
			b.done += b.bytes[i]
		}
		p.faults.push(b.parked[i]...)
	}
	delete(b.parked, i)
	p.moved.Broadcast()
}

// spoil gives a busy block up for good.
func (p *Pager) spoil(i int, err error) {
	p.mu.Lock()
	if p.blocks.states[i] == busy {
		p.release(i, bad)
	}
	p.mu.Unlock()
	p.fail(err)
}
