package memmap

import (
	"cmp"
	"slices"

	"stasis/internal/image"
)

// where says where pages are stored.
type where uint8

const (
	changed where = iota
	partly
	unchanged
	zero
	again
)

// piece is a stretch of a process's memory that is stored in one way.
type piece struct {
	pid        int
	start, end uint64
	kind       Kind
	where      where
}

func (p *piece) len() int64 { return int64(p.end - p.start) } //nolint:gosec // it lies in an address space

func (p piece) parts() Parts { return partsOf(p.where, p.len()) }

func partsOf(w where, n int64) (p Parts) {
	switch w {
	case changed:
		p.Changed = n
	case partly:
		p.ChangedPartly = n
	case unchanged:
		p.Unchanged = n
	case zero:
		p.Zero = n
	case again:
		p.StoredAgain = n
	}
	return p
}

// ownPages are those that Stasis keeps.
func (r *looker) ownPages(pid int) []piece {
	var list []piece
	for run := range r.checkpoint.Runs(pid) {
		p := piece{pid: pid, start: run.Start, end: run.End}
		switch {
		case run.Zero:
			p.where = zero
		case run.Origin > 0:
			p.where = unchanged
		case run.Delta:
			p.where = partly
		}
		list = append(list, p)
	}
	return list
}

// apart takes from pieces, which are in the order of their addresses, what others before them have already.
func apart(pieces []piece) []piece {
	out, end := pieces[:0], uint64(0)
	for _, p := range pieces {
		p.start = max(p.start, end)
		if p.start < p.end {
			out, end = append(out, p), p.end
		}
	}
	return out
}

// assign gives each piece the kind of its mapping, cut where mappings end, and each mapping its parts. Both are in the order of their
// addresses. What lies in no mapping, as in a pre-dump, becomes one of an unknown kind.
func assign(pid int, mappings []Mapping, pieces []piece) ([]Mapping, []piece) {
	var strays []Mapping
	out := make([]piece, 0, len(pieces))
	at := 0
	for _, p := range pieces {
		for p.start < p.end {
			for at < len(mappings) && mappings[at].End <= p.start {
				at++
			}
			part := p
			var of *Mapping
			switch {
			case at < len(mappings) && mappings[at].Start <= p.start:
				of = &mappings[at]
				part.end = min(p.end, of.End)
			case at < len(mappings):
				part.end = min(p.end, mappings[at].Start)
			}
			if of == nil {
				strays = stray(strays, pid, part)
				of = &strays[len(strays)-1]
			}
			part.kind = of.Kind
			of.Parts.add(part.parts())
			out = append(out, part)
			p.start = part.end
		}
	}
	if len(strays) > 0 {
		mappings = append(mappings, strays...)
		slices.SortFunc(mappings, func(a, b Mapping) int { return cmp.Compare(a.Start, b.Start) })
	}
	return mappings, out
}

// stray makes a mapping of pages that are in none, or lengthens the last.
func stray(list []Mapping, pid int, p piece) []Mapping {
	if n := len(list); n > 0 && list[n-1].End == p.start {
		list[n-1].End = p.end
		return list
	}
	return append(list, Mapping{PID: pid, Start: p.start, End: p.end})
}

// cut makes cells of pieces: as fine as it goes with so many, each of one process and kind. Where processes and kinds change more often
// than that, cells are cut without regard to them.
func cut(pieces []piece, most int) ([]Cell, int64) {
	total, changes := int64(0), 0
	for i := range pieces {
		total += pieces[i].len()
		if i == 0 || pieces[i].pid != pieces[i-1].pid || pieces[i].kind != pieces[i-1].kind {
			changes++
		}
	}
	size := int64(image.PageSize)
	for (total+size-1)/size > int64(most) {
		size *= 2
	}
	mixed := changes > most/2
	for {
		cells := cutAt(pieces, size, mixed)
		if len(cells) <= most {
			return cells, size
		}
		size *= 2
	}
}

// cutAt makes cells of a size.
func cutAt(pieces []piece, size int64, mixed bool) []Cell {
	var cells []Cell
	var shares [kinds]int64 // of the last cell's bytes
	room := int64(0)
	for _, p := range pieces {
		for p.start < p.end {
			n := len(cells)
			if room == 0 || !mixed && (cells[n-1].PID != p.pid || cells[n-1].Kind != p.kind) {
				cells, room, shares = append(cells, Cell{PID: p.pid, Start: p.start, Kind: p.kind}), size, [kinds]int64{}
				n++
			}
			take := min(room, p.len())
			c := &cells[n-1]
			c.Parts.add(partsOf(p.where, take))
			p.start += uint64(take) //nolint:gosec // positive
			if c.PID == p.pid {
				c.End = p.start
			}
			if shares[p.kind] += take; shares[p.kind] > shares[c.Kind] {
				c.Kind = p.kind
			}
			room -= take
		}
	}
	return cells
}
