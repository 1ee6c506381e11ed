package tables

import (
	"slices"
	"sort"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
)

// PIDs lists the processes whose memory is in the checkpoint (those that Finish was told of), ascending.
func (t *Tables) PIDs() []int { return slices.Clone(t.PIDTable) }

// Blocks is the number of blocks that have pages of the checkpoint. They are numbered from 0 by the process and address of the
// first page that they have.
func (t *Tables) Blocks() int { return t.Live }

// Block describes a block.
func (t *Tables) Block(i int) image.BlockInfo {
	b := &t.BlockTable[i]
	info := image.BlockInfo{Origin: int(b.Origin), Shard: int(b.Shard), Offset: b.Off, Stored: int(b.Stored), Raw: int(b.Pages) * image.PageSize, Codec: b.Codec, Delta: b.Kind == ondisk.KindDifferences}
	info.Pieces = t.Pieces(i, make([]image.Piece, 0, t.Firsts[i+1]-t.Firsts[i]))
	return info
}

// Pieces appends a block's pieces to list: for whoever asks for many, one after the other.
func (t *Tables) Pieces(i int, list []image.Piece) []image.Piece {
	for _, at := range t.ByBlock[t.Firsts[i]:t.Firsts[i+1]] {
		e := t.Extents[at]
		list = append(list, image.Piece{PID: t.PIDOf(int(at)), Addr: e.Page * image.PageSize, Pages: uint32(e.Pages), First: uint32(e.First)})
	}
	return list
}

// Bytes is the length of the block's pieces, all together. A page that is wanted in two places counts twice.
func (t *Tables) Bytes(i int) int64 {
	pages := int64(0)
	for _, at := range t.ByBlock[t.Firsts[i]:t.Firsts[i+1]] {
		pages += int64(t.Extents[at].Pages)
	}
	return pages * image.PageSize
}

// PIDOf finds the process that an extent is of.
func (t *Tables) PIDOf(at int) int {
	return t.PIDTable[sort.Search(len(t.Procs), func(i int) bool { return t.Procs[i].To > at })]
}

// Find says where a page is: in which block, and which page of it. Block and page mean something for Data only.
func (t *Tables) Find(pid int, addr uint64) (block int, page uint32, kind image.Kind) {
	i, ok := slices.BinarySearch(t.PIDTable, pid)
	if !ok {
		return 0, 0, image.Absent
	}
	p := &t.Procs[i]
	at := addr / image.PageSize
	extents := t.Extents[p.From:p.To]
	if n := sort.Search(len(extents), func(i int) bool { return extents[i].Page > at }); n > 0 {
		if e := extents[n-1]; at-e.Page < uint64(e.Pages) {
			return int(e.Block), uint32(e.First) + uint32(at-e.Page), image.Data
		}
	}
	if n := sort.Search(len(p.Zeros), func(i int) bool { return p.Zeros[i].Start > addr }); n > 0 && addr < p.Zeros[n-1].End {
		return 0, 0, image.Zero
	}
	return 0, 0, image.Absent
}

// Ranges lists all pages of a process that are in the checkpoint, zero pages among them, sorted and joined.
func (t *Tables) Ranges(pid int) []image.Range {
	i, ok := slices.BinarySearch(t.PIDTable, pid)
	if !ok {
		return nil
	}
	p := &t.Procs[i]
	out := make([]image.Range, 0, len(p.Zeros)+1)
	add := func(r image.Range) {
		if n := len(out); n > 0 && out[n-1].End == r.Start {
			out[n-1].End = r.End
			return
		}
		out = append(out, r)
	}
	zeros := p.Zeros
	for _, e := range t.Extents[p.From:p.To] {
		start := e.Page * image.PageSize
		for len(zeros) > 0 && zeros[0].Start < start {
			add(zeros[0])
			zeros = zeros[1:]
		}
		add(image.Range{Start: start, End: start + uint64(e.Pages)*image.PageSize})
	}
	for _, z := range zeros {
		add(z)
	}
	return out
}

// ZeroRanges lists the zero pages of a process, sorted and joined.
func (t *Tables) ZeroRanges(pid int) []image.Range {
	i, ok := slices.BinarySearch(t.PIDTable, pid)
	if !ok {
		return nil
	}
	return slices.Clone(t.Procs[i].Zeros)
}

// Files lists CRIU's image files in the order in which they were put.
func (t *Tables) Files() []image.FileInfo { return slices.Clone(t.FileTable) }
