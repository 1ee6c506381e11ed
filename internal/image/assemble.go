package image

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// assembleFiles makes the tables of CRIU's image files from the indexes of the shards, and sees that no file has a gap.
func (c *Checkpoint) assembleFiles(indexes []*index) error {
	for i, x := range indexes {
		if i == 0 {
			c.pids, c.files = x.pids, x.files
		} else if !slices.Equal(x.pids, c.pids) || len(x.files) > 0 {
			return c.nonsense(i, "its processes or files differ from those of "+ShardName(0))
		}
	}
	c.filePieces = make([][]filePiece, len(c.files))
	for i, x := range indexes {
		if err := c.addFileBlocks(i, x); err != nil {
			return err
		}
	}
	return c.checkFiles()
}

// assembleMemory makes the tables of memory, and sees that no page is there twice.
func (c *Checkpoint) assembleMemory(indexes []*index) error {
	c.procs = make([]proc, len(c.pids))
	for _, x := range indexes {
		for _, z := range x.zeros {
			p := &c.procs[z.proc]
			p.zeros = append(p.zeros, Range{z.page * PageSize, (z.page + z.pages) * PageSize})
		}
	}
	all, blocks, err := c.gather(indexes)
	if err != nil {
		return err
	}
	if err := c.addBases(indexes, c.addPageBlocks(all, blocks)); err != nil {
		return err
	}
	return c.checkPages()
}

// nonsense makes the error for indexes that are whole but can't be right together.
func (c *Checkpoint) nonsense(shard int, why string) error {
	return c.damage(shard, c.indexAt(shard), fmt.Sprintf("%v: %s", errIndex, why), nil)
}

// indexAt is where the index of a shard begins.
func (c *Checkpoint) indexAt(shard int) int64 { return c.manifest.Shards[shard].Size - c.tails[shard] }

func (c *Checkpoint) addFileBlocks(shard int, x *index) error {
	for _, g := range x.groups {
		for _, k := range g.blocks {
			if k.kind != fileBlock {
				continue
			}
			if int(k.file) >= len(c.files) {
				return c.nonsense(shard, "a block is of a file that is not listed")
			}
			c.filePieces[k.file] = append(c.filePieces[k.file], filePiece{k.block(&g), int64(k.where)})
		}
	}
	return nil
}

func (b *indexBlock) block(g *group) block {
	return block{
		off: b.off, sum: b.sum, stored: b.stored, raw: b.raw, shard: uint16(g.shard), origin: uint16(g.origin),
		codec: b.codec, heads: b.heads, kind: b.kind, pages: b.pages,
	}
}

// gather lists the pieces and the blocks of pages and differences as the indexes have them. The pieces number the blocks in this
// order.
func (c *Checkpoint) gather(indexes []*index) (all []extent, blocks []block, err error) {
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
					blocks = append(blocks, k.block(g))
				}
			}
		}
		crew.Go(func() {
			if err := indexes[i].takePieces(all[from:at], first); err != nil {
				errs[i] = c.damage(i, c.indexAt(i), err.Error(), nil)
			}
		})
	}
	crew.Wait()
	return all, blocks, errors.Join(errs...)
}

// takePieces gives the pieces of all groups, whose blocks are numbered from number on.
func (x *index) takePieces(out []extent, number uint32) error {
	for i := range x.groups {
		g := &x.groups[i]
		if err := g.decodePieces(out[:g.count], number, uint64(len(x.pids))); err != nil {
			return err
		}
		out = out[g.count:]
		for _, k := range g.blocks {
			if k.kind != fileBlock {
				number++
			}
		}
		g.columns = nil
	}
	return nil
}

// addPageBlocks fills extents, blocks, byBlock and firsts. Blocks are numbered by the lowest address that they have; those that
// have none come last. It returns the number of each block in the order in which the indexes have them. It takes all over.
func (c *Checkpoint) addPageBlocks(all []extent, blocks []block) (number []uint32) {
	sortExtents(all)
	c.extents = all
	// Number the blocks anew, in the order in which the sorted extents come to them.
	number = make([]uint32, len(blocks))
	c.blocks = make([]block, 0, len(blocks))
	counts := make([]uint32, len(blocks)+1)
	for i := range c.extents {
		e := &c.extents[i]
		n := number[e.block]
		if n == 0 {
			c.blocks = append(c.blocks, blocks[e.block])
			n = uint32(len(c.blocks)) // counted from 1, so that 0 is "not yet"
			number[e.block] = n
		}
		counts[n]++
		c.procs[e.page>>pageBits].to = i + 1
		e.block, e.page = n-1, e.page&pageMask
	}
	c.live = len(c.blocks)
	for i := range number {
		if number[i] == 0 {
			c.blocks = append(c.blocks, blocks[i])
			number[i] = uint32(len(c.blocks))
		}
		number[i]--
	}
	for i, from := 0, 0; i < len(c.procs); i++ {
		c.procs[i].from, c.procs[i].to = from, max(from, c.procs[i].to)
		from = c.procs[i].to
	}
	for i := 1; i < len(counts); i++ {
		counts[i] += counts[i-1]
	}
	c.firsts = counts
	c.byBlock = make([]uint32, len(c.extents))
	next := slices.Clone(counts)
	for i := range c.extents {
		b := c.extents[i].block
		c.byBlock[next[b]] = uint32(i)
		next[b]++
	}
	return number
}

// checkPages sees that no page of a process is there twice, and joins zero ranges that touch.
func (c *Checkpoint) checkPages() error {
	for i, pid := range c.pids {
		p := &c.procs[i]
		slices.SortFunc(p.zeros, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
		zeros, end := p.zeros, uint64(0)
		for _, e := range c.extents[p.from:p.to] {
			start := e.page * PageSize
			for len(zeros) > 0 && zeros[0].Start < start {
				if zeros[0].Start < end {
					return c.nonsense(0, fmt.Sprintf("process %d has a page twice at %#x", pid, zeros[0].Start))
				}
				end, zeros = zeros[0].End, zeros[1:]
			}
			if start < end {
				return c.nonsense(int(c.blocks[e.block].shard), fmt.Sprintf("process %d has a page twice at %#x", pid, start))
			}
			end = start + uint64(e.pages)*PageSize
		}
		for _, z := range zeros {
			if z.Start < end {
				return c.nonsense(0, fmt.Sprintf("process %d has a page twice at %#x", pid, z.Start))
			}
			end = z.End
		}
		joined, err := coalesce(p.zeros)
		if err != nil {
			return c.nonsense(0, err.Error())
		}
		p.zeros = joined
	}
	return nil
}

// checkFiles sees that the pieces of each file follow each other from its beginning to its end.
func (c *Checkpoint) checkFiles() error {
	seen := map[string]bool{}
	for i, f := range c.files {
		pieces := c.filePieces[i]
		slices.SortFunc(pieces, func(a, b filePiece) int { return cmp.Compare(a.where, b.where) })
		end := int64(0)
		for _, p := range pieces {
			if p.where != end {
				return c.nonsense(int(p.shard), fmt.Sprintf("%s has a gap or an overlap at %d", f.Name, p.where))
			}
			end += int64(p.raw)
		}
		if end != f.Size || seen[f.Name] {
			return c.nonsense(0, fmt.Sprintf("%s has %d bytes instead of %d, or is there twice", f.Name, end, f.Size))
		}
		seen[f.Name] = true
	}
	return nil
}
