package tables

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// AddFiles makes the tables of CRIU's image files from the indexes of the shards, and sees that no file has a gap.
func (t *Tables) AddFiles(indexes []*ondisk.Index) error {
	for i, x := range indexes {
		if i == 0 {
			t.PIDTable, t.FileTable = x.PIDs, x.Files
		} else if !slices.Equal(x.PIDs, t.PIDTable) || len(x.Files) > 0 {
			return t.nonsense(i, "its processes or files differ from those of "+image.ShardName(0))
		}
	}
	t.PieceTable = make([][]FileBlock, len(t.FileTable))
	for i, x := range indexes {
		if err := t.addFileBlocks(i, x); err != nil {
			return err
		}
	}
	return t.checkFiles()
}

// AddMemory makes the tables of memory, and sees that no page is there twice.
func (t *Tables) AddMemory(indexes []*ondisk.Index) error {
	t.Procs = make([]proc, len(t.PIDTable))
	for _, x := range indexes {
		for _, z := range x.Zeros {
			p := &t.Procs[z.Proc]
			p.Zeros = append(p.Zeros, image.Range{Start: z.Page * image.PageSize, End: (z.Page + z.Pages) * image.PageSize})
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
	return t.damaged(shard, fmt.Sprintf("%v: %s", ondisk.ErrIndex, why))
}

func (t *Tables) addFileBlocks(shard int, x *ondisk.Index) error {
	for _, g := range x.Groups {
		for _, k := range g.Blocks {
			if k.Kind != ondisk.KindFile {
				continue
			}
			if int(k.File) >= len(t.FileTable) {
				return t.nonsense(shard, "a block is of a file that is not listed")
			}
			t.PieceTable[k.File] = append(t.PieceTable[k.File], FileBlock{blockOf(&k, &g), int64(k.Where)})
		}
	}
	return nil
}

// blockOf is the form that a block of a group of an index has in Tables.
func blockOf(b *ondisk.IndexBlock, g *ondisk.Group) Block {
	return Block{
		Off: b.Off, Sum: b.Sum, Stored: b.Stored, Raw: b.Raw, Shard: uint16(g.Shard), Origin: uint16(g.Origin),
		Codec: b.Codec, Heads: b.Heads, Kind: b.Kind, Pages: b.Pages,
	}
}

// gather lists the pieces and the blocks of pages and differences as the indexes have them. The pieces number the blocks in this
// order.
func (t *Tables) gather(indexes []*ondisk.Index) (all []ondisk.Piece, blocks []Block, err error) {
	pieces, count := 0, 0
	for _, x := range indexes {
		for i := range x.Groups {
			pieces += x.Groups[i].Count
			count += len(x.Groups[i].Blocks)
		}
	}
	all, blocks = make([]ondisk.Piece, pieces), make([]Block, 0, count)
	errs := make([]error, len(indexes))
	var crew sync.WaitGroup
	for i, at := 0, 0; i < len(indexes); i++ {
		from, first := at, uint32(len(blocks))
		for n := range indexes[i].Groups {
			g := &indexes[i].Groups[n]
			at += g.Count
			for _, k := range g.Blocks {
				if k.Kind != ondisk.KindFile {
					blocks = append(blocks, blockOf(&k, g))
				}
			}
		}
		crew.Go(func() {
			if err := indexes[i].TakePieces(all[from:at], first); err != nil {
				errs[i] = t.damaged(i, err.Error())
			}
		})
	}
	crew.Wait()
	return all, blocks, errors.Join(errs...)
}

// addPageBlocks fills Extents, BlockTable, ByBlock and Firsts. Blocks are numbered by the lowest address that they have; those that
// have none come last. It returns the number of each block in the order in which the indexes have them. It takes all over.
func (t *Tables) addPageBlocks(all []ondisk.Piece, blocks []Block) (number []uint32) {
	sortExtents(all)
	t.Extents = all
	// Number the blocks anew, in the order in which the sorted extents come to them.
	number = make([]uint32, len(blocks))
	t.BlockTable = make([]Block, 0, len(blocks))
	counts := make([]uint32, len(blocks)+1)
	for i := range t.Extents {
		e := &t.Extents[i]
		n := number[e.Block]
		if n == 0 {
			t.BlockTable = append(t.BlockTable, blocks[e.Block])
			n = uint32(len(t.BlockTable)) // counted from 1, so that 0 is "not yet"
			number[e.Block] = n
		}
		counts[n]++
		t.Procs[e.Page>>ondisk.PageBits].To = i + 1
		e.Block, e.Page = n-1, e.Page&ondisk.PageMask
	}
	t.Live = len(t.BlockTable)
	for i := range number {
		if number[i] == 0 {
			t.BlockTable = append(t.BlockTable, blocks[i])
			number[i] = uint32(len(t.BlockTable))
		}
		number[i]--
	}
	for i, from := 0, 0; i < len(t.Procs); i++ {
		t.Procs[i].From, t.Procs[i].To = from, max(from, t.Procs[i].To)
		from = t.Procs[i].To
	}
	for i := 1; i < len(counts); i++ {
		counts[i] += counts[i-1]
	}
	t.Firsts = counts
	t.ByBlock = make([]uint32, len(t.Extents))
	next := slices.Clone(counts)
	for i := range t.Extents {
		b := t.Extents[i].Block
		t.ByBlock[next[b]] = uint32(i)
		next[b]++
	}
	return number
}

// checkPages sees that no page of a process is there twice, and joins zero ranges that touch.
func (t *Tables) checkPages() error {
	for i, pid := range t.PIDTable {
		p := &t.Procs[i]
		slices.SortFunc(p.Zeros, func(a, b image.Range) int { return cmp.Compare(a.Start, b.Start) })
		zeros, end := p.Zeros, uint64(0)
		for _, e := range t.Extents[p.From:p.To] {
			start := e.Page * image.PageSize
			for len(zeros) > 0 && zeros[0].Start < start {
				if zeros[0].Start < end {
					return t.nonsense(0, fmt.Sprintf("process %d has a page twice at %#x", pid, zeros[0].Start))
				}
				end, zeros = zeros[0].End, zeros[1:]
			}
			if start < end {
				return t.nonsense(int(t.BlockTable[e.Block].Shard), fmt.Sprintf("process %d has a page twice at %#x", pid, start))
			}
			end = start + uint64(e.Pages)*image.PageSize
		}
		for _, z := range zeros {
			if z.Start < end {
				return t.nonsense(0, fmt.Sprintf("process %d has a page twice at %#x", pid, z.Start))
			}
			end = z.End
		}
		joined, err := image.Coalesce(p.Zeros)
		if err != nil {
			return t.nonsense(0, err.Error())
		}
		p.Zeros = joined
	}
	return nil
}

// checkFiles sees that the pieces of each file follow each other from its beginning to its end.
func (t *Tables) checkFiles() error {
	seen := map[string]bool{}
	for i, f := range t.FileTable {
		pieces := t.PieceTable[i]
		slices.SortFunc(pieces, func(a, b FileBlock) int { return cmp.Compare(a.Where, b.Where) })
		end := int64(0)
		for _, p := range pieces {
			if p.Where != end {
				return t.nonsense(int(p.Shard), fmt.Sprintf("%s has a gap or an overlap at %d", f.Name, p.Where))
			}
			end += int64(p.Raw)
		}
		if end != f.Size || seen[f.Name] {
			return t.nonsense(0, fmt.Sprintf("%s has %d bytes instead of %d, or is there twice", f.Name, end, f.Size))
		}
		seen[f.Name] = true
	}
	return nil
}
