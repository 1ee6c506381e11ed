package convert

import (
	"fmt"
	"sort"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/proc"
)

const pageSize = proc.PageSize

// origin says where the content of a run of pages of an exported process comes from.
type origin uint8

const (
	fromCRIU   origin = iota // CRIU's own pages image in the checkpoint
	fromBlocks               // Stasis' blocks
	fromParent               // nowhere: the folder of the parent has it
)

// slot is a run of pages in the exported page map.
type slot struct {
	criu.PageRun
	from origin
	at   int64 // where its content goes in the pages image; fromParent: nowhere
	done int64 // bytes of it that were written, while CRIU's pages are copied
}

// layout is the exported page map of one process, in the order of the addresses, without overlaps.
type layout struct {
	pagesID uint32
	slots   []slot
	size    int64 // of the pages image
}

// layOut merges the pages that CRIU has with those that Stasis has in blocks. Where both have a page, CRIU's stays, as in a
// restore by Stasis. inherited are those of the blocks' pages that the parent's folder has.
func layOut(pagesID uint32, own []criu.PageRun, blocks, inherited []image.Range) (*layout, error) {
	l := &layout{pagesID: pagesID}
	blocks, inherited = cloned(blocks), cloned(inherited)
	for _, run := range own {
		if run.Flags&criu.PagePresent == 0 {
			if run.Flags&criu.PageInParent != 0 {
				return nil, fmt.Errorf("the pages at %#x are said to be in another folder of CRIU", run.Start)
			}
			continue // left out of a lazy dump, which Stasis' blocks have
		}
		l.addBlocks(&blocks, &inherited, run.Start)
		l.add(run, fromCRIU)
		blocks = behind(blocks, run.End())
	}
	l.addBlocks(&blocks, &inherited, ^uint64(0))
	return l, nil
}

func cloned(ranges []image.Range) []image.Range { return append([]image.Range(nil), ranges...) }

// behind drops what lies before an address.
func behind(ranges []image.Range, at uint64) []image.Range {
	for len(ranges) > 0 && ranges[0].End <= at {
		ranges = ranges[1:]
	}
	if len(ranges) > 0 && ranges[0].Start < at {
		ranges[0].Start = at
	}
	return ranges
}

// addBlocks adds what of the blocks' pages lies before an address.
func (l *layout) addBlocks(blocks, inherited *[]image.Range, before uint64) {
	for len(*blocks) > 0 && (*blocks)[0].Start < before {
		r := (*blocks)[0]
		r.End = min(r.End, before)
		*blocks = behind(*blocks, r.End)
		for r.Start < r.End {
			*inherited = behind(*inherited, r.Start)
			next, from := r.End, fromBlocks
			if len(*inherited) > 0 {
				if in := (*inherited)[0]; in.Start > r.Start {
					next = min(next, in.Start)
				} else {
					next, from = min(next, in.End), fromParent
				}
			}
			flags := criu.PagePresent | criu.PageLazy
			if from == fromParent {
				flags = criu.PageInParent
			}
			l.add(criu.PageRun{Start: r.Start, Pages: (next - r.Start) / pageSize, Flags: flags}, from)
			r.Start = next
		}
	}
}

func (l *layout) add(run criu.PageRun, from origin) {
	if n := len(l.slots); n > 0 {
		last := &l.slots[n-1]
		if last.End() == run.Start && last.from == from && last.Flags == run.Flags {
			last.Pages += run.Pages
			l.grow(run, from)
			return
		}
	}
	l.slots = append(l.slots, slot{PageRun: run, from: from, at: l.size})
	l.grow(run, from)
}

func (l *layout) grow(run criu.PageRun, from origin) {
	if from != fromParent {
		l.size += int64(run.Pages) * pageSize
	}
}

// runs is the page map as CRIU has it.
func (l *layout) runs() []criu.PageRun {
	runs := make([]criu.PageRun, len(l.slots))
	for i, s := range l.slots {
		runs[i] = s.PageRun
	}
	return runs
}

// each visits the parts of [addr, addr+pages) that lie in slots, in order. skip is how many pages of the range lie before the
// part.
func (l *layout) each(addr, pages uint64, visit func(part slot, skip uint64) error) error {
	end := addr + pages*pageSize
	i := sort.Search(len(l.slots), func(i int) bool { return l.slots[i].End() > addr })
	for ; i < len(l.slots) && l.slots[i].Start < end; i++ {
		s := l.slots[i]
		from, to := max(addr, s.Start), min(end, s.End())
		s.at += int64(from - s.Start)
		s.Start, s.Pages = from, (to-from)/pageSize
		if err := visit(s, (from-addr)/pageSize); err != nil {
			return err
		}
	}
	return nil
}

// blocksHave says whether the folder (or its parents) has the page at an address from Stasis' blocks, and not from CRIU.
func (l *layout) blocksHave(addr uint64) bool {
	i := sort.Search(len(l.slots), func(i int) bool { return l.slots[i].End() > addr })
	return i < len(l.slots) && l.slots[i].Start <= addr && l.slots[i].from != fromCRIU
}
