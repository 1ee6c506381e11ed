package image

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
)

// assemble makes the tables of the checkpoint from the indexes of its shards, and sees that together they make sense: no page
// twice, no file with a gap.
func (c *Checkpoint) assemble(indexes []*index) error {
	for i, x := range indexes {
		if i == 0 {
			c.pids, c.files = x.pids, x.files
		} else if !slices.Equal(x.pids, c.pids) || len(x.files) > 0 {
			return c.nonsense(i, "its processes or files differ from those of "+ShardName(0))
		}
	}
	c.procs = make([]proc, len(c.pids))
	c.filePieces = make([][]filePiece, len(c.files))
	for i, x := range indexes {
		for _, z := range x.zeros {
			p := &c.procs[z.proc]
			p.zeros = append(p.zeros, Range{z.page * PageSize, (z.page + z.pages) * PageSize})
		}
		if err := c.addFileBlocks(i, x); err != nil {
			return err
		}
	}
	if err := c.addBases(indexes, c.addPageBlocks(indexes)); err != nil {
		return err
	}
	if err := c.checkFiles(); err != nil {
		return err
	}
	return c.checkPages()
}

// nonsense makes the error for indexes that are whole but can't be right together.
func (c *Checkpoint) nonsense(shard int, why string) error {
	at := c.manifest.Shards[shard].Size - c.tails[shard]
	return c.damage(shard, at, fmt.Sprintf("%v: %s", errIndex, why), nil)
}

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

// addPageBlocks fills extents, blocks, byBlock and firsts. Blocks are numbered by the lowest address that they have; those that
// have none come last. It returns the number of each block in the order in which the indexes have them.
func (c *Checkpoint) addPageBlocks(indexes []*index) (number []uint32) {
	pieces, count := 0, 0
	for _, x := range indexes {
		for i := range x.groups {
			pieces += len(x.groups[i].pieces)
			count += len(x.groups[i].blocks)
		}
	}
	all, keys := make([]extent, 0, pieces), make([]keyed, 0, pieces)
	blocks := make([]block, 0, count) // as they come
	for _, x := range indexes {
		for i := range x.groups {
			g := &x.groups[i]
			pieces := g.pieces
			for _, k := range g.blocks {
				if k.kind == fileBlock {
					continue
				}
				for _, p := range pieces[:k.pieces] {
					keys = append(keys, keyed{uint64(p.proc)<<pageBits | p.page, uint32(len(all))})
					all = append(all, extent{p.page, uint32(len(blocks)), uint8(p.pages), uint8(p.first)})
				}
				pieces = pieces[k.pieces:]
				blocks = append(blocks, k.block(g))
			}
			if len(g.bases) == 0 {
				g.pieces = nil // see addBases; the sort takes as much again
			}
		}
	}
	keys = radixSort(keys)
	// Number the blocks anew, in the order in which the sorted extents come to them.
	number = make([]uint32, len(blocks))
	c.blocks = make([]block, 0, len(blocks))
	c.extents = make([]extent, len(all))
	counts := make([]uint32, len(blocks)+1)
	for i, k := range keys {
		old := all[k.at].block
		if number[old] == 0 {
			c.blocks = append(c.blocks, blocks[old])
			number[old] = uint32(len(c.blocks)) // counted from 1, so that 0 is "not yet"
		}
		c.extents[i] = all[k.at]
		c.extents[i].block = number[old] - 1
		counts[number[old]]++
		c.procs[k.key>>pageBits].to = i + 1
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
	c.byBlock = make([]uint32, len(all))
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
		sort.Slice(p.zeros, func(a, b int) bool { return p.zeros[a].Start < p.zeros[b].Start })
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
