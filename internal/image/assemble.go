package image

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// addFiles makes the tables of CRIU's image files from the indexes of the shards, and sees that no file has a gap.
func (t *Tables) addFiles(indexes []*index) error {
	for i, x := range indexes {
		if i == 0 {
			t.pids, t.files = x.pids, x.files
		} else if !slices.Equal(x.pids, t.pids) || len(x.files) > 0 {
			return t.nonsense(i, "its processes or files differ from those of "+ShardName(0))
		}
	}
	t.filePieces = make([][]filePiece, len(t.files))
	for i, x := range indexes {
		if err := t.addFileBlocks(i, x); err != nil {
			return err
		}
	}
	return t.checkFiles()
}

// addMemory makes the tables of memory, and sees that no page is there twice.
func (t *Tables) addMemory(indexes []*index) error {
	t.procs = make([]proc, len(t.pids))
	for _, x := range indexes {
		for _, z := range x.zeros {
			p := &t.procs[z.proc]
			p.zeros = append(p.zeros, Range{z.page * PageSize, (z.page + z.pages) * PageSize})
		}
	}
	all, blocks, err := t.gather(indexes)
	if err != nil {
		return err
	}
	if err := t.addBases(indexes, t.addPageBlocks(all, blocks)); err != nil {
		return err
	}
	return t.checkPages()
}

// nonsense makes the error for indexes that are whole but can't be right together.
func (t *Tables) nonsense(shard int, why string) error {
	return t.damaged(shard, fmt.Sprintf("%v: %s", errIndex, why))
}

func (t *Tables) addFileBlocks(shard int, x *index) error {
	for _, g := range x.groups {
		for _, k := range g.blocks {
			if k.kind != fileBlock {
				continue
			}
			if int(k.file) >= len(t.files) {
				return t.nonsense(shard, "a block is of a file that is not listed")
			}
			t.filePieces[k.file] = append(t.filePieces[k.file], filePiece{blockOf(&k, &g), int64(k.where)})
		}
	}
	return nil
}

// blockOf is the form that a block of a group of an index has in Tables.
func blockOf(b *indexBlock, g *group) block {
	return block{
		off: b.off, sum: b.sum, stored: b.stored, raw: b.raw, shard: uint16(g.shard), origin: uint16(g.origin),
		codec: b.codec, heads: b.heads, kind: b.kind, pages: b.pages,
	}
}

// gather lists the pieces and the blocks of pages and differences as the indexes have them. The pieces number the blocks in this
// order.
func (t *Tables) gather(indexes []*index) (all []extent, blocks []block, err error) {
	pieces, count := 0, 0
	for _, x := range indexes {
		for i := range x.groups {
			pieces += x.groups[i].count
			count += len(x.groups[i].blocks)
		}
	}
	all, blocks = make([]extent, pieces), make([]block, 0, count)
	errs := make([]error, len(indexes))
	var crew sync.WaitGroup
	for i, at := 0, 0; i < len(indexes); i++ {
		from, first := at, uint32(len(blocks))
		for n := range indexes[i].groups {
			g := &indexes[i].groups[n]
			at += g.count
			for _, k := range g.blocks {
				if k.kind != fileBlock {
					blocks = append(blocks, blockOf(&k, g))
				}
			}
		}
		crew.Go(func() {
			if err := indexes[i].takePieces(all[from:at], first); err != nil {
				errs[i] = t.damaged(i, err.Error())
			}
		})
	}
	crew.Wait()
	return all, blocks, errors.Join(errs...)
}

// addPageBlocks fills extents, blocks, byBlock and firsts. Blocks are numbered by the lowest address that they have; those that
// have none come last. It returns the number of each block in the order in which the indexes have them. It takes all over.
func (t *Tables) addPageBlocks(all []extent, blocks []block) (number []uint32) {
	sortExtents(all)
	t.extents = all
	// Number the blocks anew, in the order in which the sorted extents come to them.
	number = make([]uint32, len(blocks))
	t.blocks = make([]block, 0, len(blocks))
	counts := make([]uint32, len(blocks)+1)
	for i := range t.extents {
		e := &t.extents[i]
		n := number[e.block]
		if n == 0 {
			t.blocks = append(t.blocks, blocks[e.block])
			n = uint32(len(t.blocks)) // counted from 1, so that 0 is "not yet"
			number[e.block] = n
		}
		counts[n]++
		t.procs[e.page>>pageBits].to = i + 1
		e.block, e.page = n-1, e.page&pageMask
	}
	t.live = len(t.blocks)
	for i := range number {
		if number[i] == 0 {
			t.blocks = append(t.blocks, blocks[i])
			number[i] = uint32(len(t.blocks))
		}
		number[i]--
	}
	for i, from := 0, 0; i < len(t.procs); i++ {
		t.procs[i].from, t.procs[i].to = from, max(from, t.procs[i].to)
		from = t.procs[i].to
	}
	for i := 1; i < len(counts); i++ {
		counts[i] += counts[i-1]
	}
	t.firsts = counts
	t.byBlock = make([]uint32, len(t.extents))
	next := slices.Clone(counts)
	for i := range t.extents {
		b := t.extents[i].block
		t.byBlock[next[b]] = uint32(i)
		next[b]++
	}
	return number
}

// checkPages sees that no page of a process is there twice, and joins zero ranges that touch.
func (t *Tables) checkPages() error {
	for i, pid := range t.pids {
		p := &t.procs[i]
		slices.SortFunc(p.zeros, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
		zeros, end := p.zeros, uint64(0)
		for _, e := range t.extents[p.from:p.to] {
			start := e.page * PageSize
			for len(zeros) > 0 && zeros[0].Start < start {
				if zeros[0].Start < end {
					return t.nonsense(0, fmt.Sprintf("process %d has a page twice at %#x", pid, zeros[0].Start))
				}
				end, zeros = zeros[0].End, zeros[1:]
			}
			if start < end {
				return t.nonsense(int(t.blocks[e.block].shard), fmt.Sprintf("process %d has a page twice at %#x", pid, start))
			}
			end = start + uint64(e.pages)*PageSize
		}
		for _, z := range zeros {
			if z.Start < end {
				return t.nonsense(0, fmt.Sprintf("process %d has a page twice at %#x", pid, z.Start))
			}
			end = z.End
		}
		joined, err := coalesce(p.zeros)
		if err != nil {
			return t.nonsense(0, err.Error())
		}
		p.zeros = joined
	}
	return nil
}

// checkFiles sees that the pieces of each file follow each other from its beginning to its end.
func (t *Tables) checkFiles() error {
	seen := map[string]bool{}
	for i, f := range t.files {
		pieces := t.filePieces[i]
		slices.SortFunc(pieces, func(a, b filePiece) int { return cmp.Compare(a.where, b.where) })
		end := int64(0)
		for _, p := range pieces {
			if p.where != end {
				return t.nonsense(int(p.shard), fmt.Sprintf("%s has a gap or an overlap at %d", f.Name, p.where))
			}
			end += int64(p.raw)
		}
		if end != f.Size || seen[f.Name] {
			return t.nonsense(0, fmt.Sprintf("%s has %d bytes instead of %d, or is there twice", f.Name, end, f.Size))
		}
		seen[f.Name] = true
	}
	return nil
}
