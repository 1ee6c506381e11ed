package proc

import (
	"errors"
	"fmt"
	"io"
	"unsafe"
)

// Entry is what /proc/PID/pagemap says about one page
// (Documentation/admin-guide/mm/pagemap.rst). It is there on every kernel, and
// knows some things that PAGEMAP_SCAN does not tell.
type Entry uint64

const (
	entrySoftDirty = 1 << 55
	entryExclusive = 1 << 56 // Linux 4.2
	entryFile      = 1 << 61
	entrySwapped   = 1 << 62
	entryPresent   = 1 << 63

	entriesPerCall = 8192 // 32 MiB of memory
	entryBytes     = 8
)

// Present says that the page is in RAM.
func (e Entry) Present() bool { return e&entryPresent != 0 }

// Swapped says that the page is in swap, or on its way to another place in RAM.
func (e Entry) Swapped() bool { return e&entrySwapped != 0 }

// There says that the page is present or swapped.
func (e Entry) There() bool { return e&(entryPresent|entrySwapped) != 0 }

// SoftDirty says that the page was written since the bits of its process were
// last cleared, or that its mapping is newer than that. It is never set on a
// kernel without CONFIG_MEM_SOFT_DIRTY.
func (e Entry) SoftDirty() bool { return e&entrySoftDirty != 0 }

// File says that the page belongs to a file, or is shared anonymous memory.
func (e Entry) File() bool { return e&entryFile != 0 }

// Exclusive says that nobody else maps the page. It is not set for the kernel's
// shared pages of zeros, nor for a page in swap.
func (e Entry) Exclusive() bool { return e&entryExclusive != 0 }

// Place is where the page is: in which page of RAM, or where in swap. Two pages
// that are there at the same time and not shared have different places. It is 0
// for a reader without CAP_SYS_ADMIN.
func (e Entry) Place() uint64 {
	const bits = 1<<55 - 1
	place := uint64(e) & bits
	if place != 0 && e.Swapped() {
		place |= entrySwapped
	}
	return place
}

// Entries visits the entries of a range in pieces, in address order: those of
// the pages from address at on. The visitor must not keep the slice. It may
// call Scan, but not Entries. For an address space that has ended, or addresses
// that no mapping can have, there is no visit.
func (p *Pagemap) Entries(r Range, visit func(at uint64, entries []Entry)) error {
	if p.entries == nil {
		p.entries = make([]Entry, entriesPerCall)
	}
	for at := r.Start; at < r.End; {
		n := min((r.End-at+PageSize-1)/PageSize, entriesPerCall)
		got, err := p.read(at, p.entries[:n])
		if got > 0 {
			visit(at, p.entries[:got])
			at += uint64(got) * PageSize
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the page map at %#x of process %d: %w", at, p.pid, err)
		}
	}
	return nil
}

// Entry is that of the page at an address; 0 where there is none.
func (p *Pagemap) Entry(at uint64) (Entry, error) {
	var one [1]Entry
	if _, err := p.read(at, one[:]); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read the page map at %#x of process %d: %w", at, p.pid, err)
	}
	return one[0], nil
}

func (p *Pagemap) read(at uint64, into []Entry) (int, error) {
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&into[0])), len(into)*entryBytes)
	n, err := p.file.ReadAt(raw, int64(at/PageSize*entryBytes))
	return n / entryBytes, err
}

// scanEntries does for Scan what PAGEMAP_SCAN does on newer kernels.
func (p *Pagemap) scanEntries(r Range, more Category, visit func(Run)) error {
	var run Run
	err := p.Entries(r, func(at uint64, entries []Entry) {
		for i, e := range entries {
			categories := e.categories(more)
			from := at + uint64(i)*PageSize
			if categories != run.Categories || from != run.End {
				if run.Categories != 0 {
					visit(run)
				}
				run = Run{Range{from, from}, categories}
			}
			run.End = from + PageSize
		}
	})
	if err == nil && run.Categories != 0 {
		visit(run)
	}
	return err
}

// categories are those that an entry tells; none for a page that is not there.
func (e Entry) categories(more Category) (c Category) {
	if !e.There() {
		return 0
	}
	for _, known := range []struct {
		bit  Entry
		name Category
	}{{entryPresent, Present}, {entrySwapped, Swapped}, {entryFile, File}, {entrySoftDirty, SoftDirty & more}} {
		if e&known.bit != 0 {
			c |= known.name
		}
	}
	return c
}
