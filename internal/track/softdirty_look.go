package track

import (
	"sort"

	"stasis/internal/proc"
)

// looked is a run of pages and what is known about it.
type looked struct {
	proc.Run
	changed bool
}

// tableBytes is the memory that one page table maps, and the unit in which the
// kernel moves tables.
const tableBytes = 2 << 20

// landmark is a page by which a page table is known again. The kernel moves
// either single pages, and sets their bits, or all pages of a table, and leaves
// them alone. A page that has kept its place in RAM, unwritten, shows that its
// table has not been replaced by another one: the page that was there before
// would be gone. Compaction and swap change places as well; then the pages of
// that table count as written once.
type landmark struct {
	Page  uint16 // which one of the table
	Place uint64 // as proc.Entry.Place has it
}

// landmarksPerTable is how many pages a table is known by, spread over it. One is
// enough unless it was written.
const landmarksPerTable = 4

// look finds the pages that are there in some sorted ranges. When next is given,
// it notes there by what their tables are known again.
func (s *SoftDirty) look(of []proc.Range, next *state) ([]looked, error) {
	pagemap, err := proc.OpenPagemap(s.pid) // of the address space that the process has now
	if err != nil {
		return nil, err
	}
	defer pagemap.Close()
	l := looker{state: &s.state, pagemap: pagemap, next: next}
	for _, r := range of {
		if err := l.lookAt(r); err != nil {
			return nil, err
		}
	}
	// At the end: bits that were cleared by somebody else before a page was read
	// had been cleared by now.
	if s.doubt = s.state.doubt(s.pid, pagemap); s.doubt != "" {
		for i := range l.found {
			l.found[i].changed = true
		}
		s.state = state{} // and so does the next look, whatever happens to the canaries
	}
	return l.found, nil
}

// looker looks at the memory of a process.
type looker struct {
	state   *state
	pagemap *proc.Pagemap
	next    *state
	found   []looked

	table uint64 // the one that same is about
	same  bool
	quiet bool // the newest landmark of next was not written
}

// lookAt finds the pages of one range.
func (l *looker) lookAt(r proc.Range) error {
	if !proc.CanScan() {
		return l.pagemap.Entries(r, l.entries)
	}
	// Newer kernels tell quickly what is there at all; what is not known to be
	// written, or is to be known again, is looked at page by page.
	var failed error
	err := l.pagemap.ScanSoftDirty(r, func(run proc.Run) {
		switch {
		case failed != nil:
		case run.Categories&proc.SoftDirty != 0 && l.next == nil:
			l.note(run, true)
		default:
			failed = l.pagemap.Entries(run.Range, l.entries)
		}
	})
	if err == nil {
		err = failed
	}
	return err
}

// entries notes pages by their entries.
func (l *looker) entries(at uint64, entries []proc.Entry) {
	for i, e := range entries {
		if !e.There() {
			continue
		}
		page := at + uint64(i)*proc.PageSize
		l.remember(page, e)
		run := proc.Run{Range: proc.Range{Start: page, End: page + proc.PageSize}, Categories: proc.Present}
		if e.Swapped() {
			run.Categories = proc.Swapped
		}
		l.note(run, l.changed(page, e))
	}
}

// note adds a run, or makes the last one longer.
func (l *looker) note(run proc.Run, changed bool) {
	if n := len(l.found); n > 0 {
		last := &l.found[n-1]
		if last.End == run.Start && last.changed == changed && last.Categories == run.Categories {
			last.End = run.End
			return
		}
	}
	l.found = append(l.found, looked{run, changed})
}

// changed says whether a page may have been written since the last round.
func (l *looker) changed(page uint64, e proc.Entry) bool {
	return e.SoftDirty() || !ownPage(e) || !l.state.trusts(page) || !l.sameTable(page)
}

// ownPage says whether a page is one of this process alone.
func ownPage(e proc.Entry) bool { return e.Swapped() || e.Exclusive() }

// sameTable says whether the page table of a page is that of the last round.
func (l *looker) sameTable(page uint64) bool {
	table := page / tableBytes
	if table == l.table {
		return l.same
	}
	l.table, l.same = table, false
	for _, mark := range l.state.Landmarks[table] {
		e, err := l.pagemap.Entry(table*tableBytes + uint64(mark.Page)*proc.PageSize)
		if err == nil && e.There() && !e.SoftDirty() && ownPage(e) && e.Place() == mark.Place {
			l.same = true
			break
		}
	}
	return l.same
}

// remember notes a page to know its table by, if it is a good one. Each part of
// a table has one, which is not written at the moment if there is such a page.
func (l *looker) remember(page uint64, e proc.Entry) {
	if l.next == nil || !ownPage(e) || e.Place() == 0 {
		return
	}
	const perPart = tableBytes / proc.PageSize / landmarksPerTable
	if l.next.Landmarks == nil {
		l.next.Landmarks = make(map[uint64][]landmark)
	}
	table := page / tableBytes
	mark := landmark{uint16(page % tableBytes / proc.PageSize), e.Place()}
	list := l.next.Landmarks[table]
	if n := len(list); n == 0 || list[n-1].Page/perPart != mark.Page/perPart {
		l.next.Landmarks[table] = append(list, mark)
		l.quiet = !e.SoftDirty()
	} else if !l.quiet && !e.SoftDirty() {
		list[n-1], l.quiet = mark, true
	}
}

// state is what a round leaves for the next one, beside the kernel's bits.
type state struct {
	Trusted   []proc.Range          // what the round looked at, in order
	Landmarks map[uint64][]landmark // by table, which is the address divided by tableBytes
	Canaries  []uint64              // addresses of pages whose bits were set after all were cleared
}

// trusts says whether the last round looked at a page.
func (s *state) trusts(page uint64) bool {
	i := sort.Search(len(s.Trusted), func(i int) bool { return s.Trusted[i].End > page })
	return i < len(s.Trusted) && s.Trusted[i].Start <= page
}
