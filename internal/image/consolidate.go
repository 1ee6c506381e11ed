package image

import (
	"cmp"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// A checkpoint of a long chain would refer to all of its ancestors: each has some pages that nobody wrote since. Whoever restores
// it would have to find, hold and open all of them. So a Writer takes pages over: what the checkpoint needs of the ancestors that
// it needs least of is written once more, into its own shards. A difference stays one, from the same base, so that it costs its few
// bytes. As many ancestors go at once, each page is moved a number of times that grows with the logarithm of the chain's length only.

// MaxOrigins is the most ancestors that a checkpoint refers to, unless WriterOptions say otherwise. Only where a part of one
// can't be read it may be more: what can't be read can't be moved. When it would be more, half as many stay.
const MaxOrigins = 32

// consolidate sees that the checkpoint, as it would become, refers to no more ancestors than it may.
func (w *Writer) consolidate(present map[int][]Range, lenient bool) error {
	c := w.parent
	if c == nil || w.insteadOf || len(w.records.parentOrigins) < w.maxOrigins { // one more: the parent itself
		return nil
	}
	p, err := makePlan(&w.records, present, lenient)
	if err != nil {
		return err
	}
	wanted := p.wantedOfParent()
	leave := p.least(wanted, w.maxOrigins)
	if len(leave) == 0 {
		return nil
	}
	var blocks []uint32
	for i := range c.blocks {
		if wanted[i] != 0 && leave[c.blocks[i].origin] {
			blocks = append(blocks, uint32(i))
		}
	}
	slices.SortFunc(blocks, func(a, b uint32) int {
		x, y := &c.blocks[a], &c.blocks[b]
		return cmp.Or(cmp.Compare(x.origin, y.origin), cmp.Compare(x.shard, y.shard), cmp.Compare(x.off, y.off))
	})
	if err := w.moveBlocks(blocks, wanted); err != nil {
		return err
	}
	return w.moveFiles(leave)
}

// moveRun is how many blocks in a row one worker moves, so that what was together stays together.
const moveRun = 64

// moveBlocks writes the wanted pages of some of the parent's blocks once more. What can't be read stays where it is.
func (w *Writer) moveBlocks(blocks []uint32, wanted []uint64) error {
	workers := min(runtime.NumCPU(), (len(blocks)+moveRun-1)/moveRun)
	movers := make([]mover, workers)
	errs := make([]error, workers)
	var next atomic.Int64
	var crew sync.WaitGroup
	for i := range movers {
		crew.Go(func() {
			m := &movers[i]
			m.w, m.s = w, new(scratch)
			for errs[i] == nil {
				from := int(next.Add(moveRun)) - moveRun
				if from >= len(blocks) {
					errs[i] = m.flush()
					return
				}
				for _, block := range blocks[from:min(from+moveRun, len(blocks))] {
					if errs[i] = m.move(block, wanted[block]); errs[i] != nil {
						return
					}
				}
			}
		})
	}
	crew.Wait()
	for i := range movers {
		if errs[i] != nil {
			return errs[i]
		}
		w.records.moved = append(w.records.moved, movers[i].moved...)
	}
	w.records.moved.sort()
	return nil
}

// moveFiles writes the pieces of CRIU's images once more that are in those origins.
func (w *Writer) moveFiles(leave map[uint16]bool) error {
	s := new(scratch)
	stay := w.records.fileRefs[:0]
	for _, f := range w.records.fileRefs {
		if leave[f.piece.origin] {
			data, err := w.parent.readPayload(&f.piece.block, &s.file, false)
			if err == nil {
				where := uint64(f.piece.where)
				if _, err := w.put(s, blockHead{kind: fileBlock, owner: f.file, fileOff: where}, data, where); err != nil {
					return err
				}
				continue
			}
		}
		stay = append(stay, f)
	}
	w.records.fileRefs = stay
	return nil
}
