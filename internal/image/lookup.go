package image

import (
	"slices"
	"sort"
)

// PIDs lists the processes whose memory is in the checkpoint (those that Finish was told of), ascending.
func (t *Tables) PIDs() []int { return slices.Clone(t.pids) }

// Blocks is the number of blocks that have pages of the checkpoint. They are numbered from 0 by the process and address of the
// first page that they have.
func (t *Tables) Blocks() int { return t.live }

// Block describes a block.
func (t *Tables) Block(i int) BlockInfo {
	b := &t.blocks[i]
	info := BlockInfo{Origin: int(b.origin), Shard: int(b.shard), Offset: b.off, Stored: int(b.stored), Raw: int(b.pages) * PageSize, Codec: b.codec, Delta: b.kind == deltaBlock}
	info.Pieces = t.Pieces(i, make([]Piece, 0, t.firsts[i+1]-t.firsts[i]))
	return info
}

// Pieces appends a block's pieces to list: for whoever asks for many, one after the other.
func (t *Tables) Pieces(i int, list []Piece) []Piece {
	for _, at := range t.byBlock[t.firsts[i]:t.firsts[i+1]] {
		e := t.extents[at]
		list = append(list, Piece{t.pidOf(int(at)), e.page * PageSize, uint32(e.pages), uint32(e.first)})
	}
	return list
}

// Bytes is the length of the block's pieces, all together. A page that is wanted in two places counts twice.
func (t *Tables) Bytes(i int) int64 {
	pages := int64(0)
	for _, at := range t.byBlock[t.firsts[i]:t.firsts[i+1]] {
		pages += int64(t.extents[at].pages)
	}
	return pages * PageSize
}

// pidOf finds the process that an extent is of.
func (t *Tables) pidOf(at int) int {
	return t.pids[sort.Search(len(t.procs), func(i int) bool { return t.procs[i].to > at })]
}

// Find says where a page is: in which block, and which page of it. Block and page mean something for Data only.
func (t *Tables) Find(pid int, addr uint64) (block int, page uint32, kind Kind) {
	i, ok := slices.BinarySearch(t.pids, pid)
	if !ok {
		return 0, 0, Absent
	}
	p := &t.procs[i]
	at := addr / PageSize
	extents := t.extents[p.from:p.to]
	if n := sort.Search(len(extents), func(i int) bool { return extents[i].page > at }); n > 0 {
		if e := extents[n-1]; at-e.page < uint64(e.pages) {
			return int(e.block), uint32(e.first) + uint32(at-e.page), Data
		}
	}
	if n := sort.Search(len(p.zeros), func(i int) bool { return p.zeros[i].Start > addr }); n > 0 && addr < p.zeros[n-1].End {
		return 0, 0, Zero
	}
	return 0, 0, Absent
}

// Ranges lists all pages of a process that are in the checkpoint, zero pages among them, sorted and joined.
func (t *Tables) Ranges(pid int) []Range {
	i, ok := slices.BinarySearch(t.pids, pid)
	if !ok {
		return nil
	}
	p := &t.procs[i]
	out := make([]Range, 0, len(p.zeros)+1)
	add := func(r Range) {
		if n := len(out); n > 0 && out[n-1].End == r.Start {
			out[n-1].End = r.End
			return
		}
		out = append(out, r)
	}
	zeros := p.zeros
	for _, e := range t.extents[p.from:p.to] {
		start := e.page * PageSize
		for len(zeros) > 0 && zeros[0].Start < start {
			add(zeros[0])
			zeros = zeros[1:]
		}
		add(Range{start, start + uint64(e.pages)*PageSize})
	}
	for _, z := range zeros {
		add(z)
	}
	return out
}

// ZeroRanges lists the zero pages of a process, sorted and joined.
func (t *Tables) ZeroRanges(pid int) []Range {
	i, ok := slices.BinarySearch(t.pids, pid)
	if !ok {
		return nil
	}
	return slices.Clone(t.procs[i].zeros)
}

// Files lists CRIU's image files in the order in which they were put.
func (t *Tables) Files() []FileInfo { return slices.Clone(t.files) }
