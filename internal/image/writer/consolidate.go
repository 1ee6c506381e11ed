package writer

import (
	"cmp"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/plan"
)

// A checkpoint of a long chain would refer to all of its ancestors: each has some pages that nobody wrote since. Whoever restores
// it would have to find, hold and open all of them. So a Writer takes pages over: what the checkpoint needs of the ancestors that
// it needs least of is written once more, into its own shards. A difference stays one, from the same base, so that it costs its few
// bytes. As many ancestors go at once, each page is moved a number of times that grows with the logarithm of the chain's length only.

// MaxOrigins is the most ancestors that a checkpoint refers to, unless Options say otherwise. Only where a part of one
// can't be read it may be more: what can't be read can't be moved. When it would be more, half as many stay.
const MaxOrigins = 32

// consolidate sees that the checkpoint, as it would become, refers to no more ancestors than it may.
func (w *Writer) consolidate(present map[int][]image.Range, lenient bool) error {
	c := w.parent
	if c == nil || w.insteadOf || len(w.records.ParentOrigins) < w.maxOrigins { // one more: the parent itself
		return nil
	}
	p, err := plan.Make(&w.records, present, lenient)
	if err != nil {
		return err
	}
	wanted := p.WantedOfParent()
	leave := p.Least(wanted, w.maxOrigins)
	if len(leave) == 0 {
		return nil
	}
	var blocks []uint32
	for i := range c.BlockTable {
		if wanted[i] != 0 && leave[c.BlockTable[i].Origin] {
			blocks = append(blocks, uint32(i))
		}
	}
	slices.SortFunc(blocks, func(a, b uint32) int {
		x, y := &c.BlockTable[a], &c.BlockTable[b]
		return cmp.Or(cmp.Compare(x.Origin, y.Origin), cmp.Compare(x.Shard, y.Shard), cmp.Compare(x.Off, y.Off))
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
		w.records.Moved = append(w.records.Moved, movers[i].moved...)
	}
	w.records.Moved.Sort()
	return nil
}

// moveFiles writes the pieces of CRIU's images once more that are in those origins.
func (w *Writer) moveFiles(leave map[uint16]bool) error {
	s := new(scratch)
	stay := w.records.FileRefs[:0]
	for _, f := range w.records.FileRefs {
		if leave[f.Piece.Origin] {
			data, err := w.parent.ReadPayload(&f.Piece.Block, &s.file, false)
			if err == nil {
				where := uint64(f.Piece.Where)
				if _, err := w.put(s, ondisk.BlockHead{Kind: ondisk.KindFile, Owner: f.File, FileOff: where}, data, where); err != nil {
					return err
				}
				continue
			}
		}
		stay = append(stay, f)
	}
	w.records.FileRefs = stay
	return nil
}
