package proc

import (
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Category is a set of properties of a page as PAGEMAP_SCAN reports them
// (Linux 6.7, Documentation/admin-guide/mm/pagemap.rst).
type Category uint64

// The categories that the engine asks for.
const (
	WPAllowed Category = 1 << 0 // its mapping is write-protect tracked, asynchronously
	Written   Category = 1 << 1 // written since it was last protected
	File      Category = 1 << 2
	Present   Category = 1 << 3
	Swapped   Category = 1 << 4
	ZeroPage  Category = 1 << 5 // the kernel's shared page of zeros
	Huge      Category = 1 << 6 // part of a transparent or hugetlb huge page
	SoftDirty Category = 1 << 7 // written since the bits were last cleared; only ScanSoftDirty asks for it
	Guard     Category = 1 << 8 // MADV_GUARD_INSTALL: a touch is a fault (Linux 6.15)
)

// Run is a stretch of pages of the same categories.
type Run struct {
	Range
	Categories Category
}

// Changed says whether the pages may have been written since they were last
// protected. Only a tracked and unwritten page is known to be unchanged: new
// and moved mappings, and those that another userfaultfd holds, count as
// changed. That one rule makes fork, exec, mremap, munmap and madvise safe.
func (r Run) Changed() bool {
	return r.Categories&WPAllowed == 0 || r.Categories&Written != 0
}

// Raw layout of struct pm_scan_arg and struct page_region (linux/fs.h).
type scanArg struct {
	size, flags                   uint64
	start, end, walkEnd           uint64
	vec, vecLen, maxPages         uint64
	inverted, mask, anyOf, result uint64
}

type pageRegion struct{ start, end, categories uint64 }

const (
	scanIoctl       = 0xc0606610 // PAGEMAP_SCAN
	scanProtect     = 1 << 0     // PM_SCAN_WP_MATCHING
	scanCheckAsync  = 1 << 1     // PM_SCAN_CHECK_WPASYNC
	regionsPerCall  = 2048
	wantedInResults = WPAllowed | Written | Present | Swapped | ZeroPage | Huge
)

// Pagemap is an open /proc/PID/pagemap. It keeps naming the same address space
// when the process executes another program: reads then find nothing.
type Pagemap struct {
	pid     int
	file    *os.File
	regions []pageRegion
	entries []Entry // for Entries
}

// OpenPagemap opens the page map of a process; the caller closes it.
func OpenPagemap(pid int) (*Pagemap, error) {
	file, err := os.Open(path(pid, "pagemap"))
	if err != nil {
		return nil, gone(pid, "pagemap", err)
	}
	return &Pagemap{pid: pid, file: file, regions: make([]pageRegion, regionsPerCall)}, nil
}

// Close closes the page map.
func (p *Pagemap) Close() error { return p.file.Close() }

// Scan visits the runs of pages that are there (present or swapped) in a range,
// in address order. On kernels before 6.7 it reads the entry of each page, which
// also takes its time for memory that is only reserved; the runs then have no
// other categories than Present, Swapped and File.
func (p *Pagemap) Scan(r Range, visit func(Run)) error {
	if !CanScan() {
		return p.scanEntries(r, 0, visit)
	}
	return p.scan(r, p.there(scanArg{result: uint64(wantedInResults)}), visit)
}

// ScanSoftDirty is Scan with the category SoftDirty. It is asked for nowhere
// else because it cuts the memory into more runs.
func (p *Pagemap) ScanSoftDirty(r Range, visit func(Run)) error {
	if !CanScan() {
		return p.scanEntries(r, SoftDirty, visit)
	}
	return p.scan(r, p.there(scanArg{result: uint64(wantedInResults | SoftDirty)}), visit)
}

// Changed is how many bytes of the pages that are there in a range may have been written since they were last protected. It needs
// PAGEMAP_SCAN.
func (p *Pagemap) Changed(r Range) (bytes uint64, err error) {
	err = p.scan(r, p.there(scanArg{result: uint64(WPAllowed | Written)}), func(run Run) {
		if run.Changed() {
			bytes += run.Len()
		}
	})
	return bytes, err
}

// Protect visits the runs of pages in a range that are there and were written,
// and write-protects them in the same step, so that no write between the two
// is missed. Every mapping in the range has to be tracked asynchronously, else
// it returns EPERM and may have protected the pages before it.
//
// Pages that are not there are left alone: a protection would put a marker of
// 8 bytes into the page table of each, also in terabytes of reserved space.
func (p *Pagemap) Protect(r Range, visit func(Run)) error {
	arg := scanArg{flags: scanProtect | scanCheckAsync, mask: uint64(Written), result: uint64(wantedInResults)}
	return p.scan(r, p.there(arg), visit)
}

// Tracked says whether the mapping at an address is tracked asynchronously, by
// whichever userfaultfd.
func (p *Pagemap) Tracked(at uint64) bool {
	arg := scanArg{flags: scanCheckAsync, anyOf: uint64(WPAllowed), mask: uint64(WPAllowed), result: uint64(WPAllowed)}
	at &^= PageSize - 1
	return p.scan(Range{at, at + PageSize}, arg, func(Run) {}) == nil
}

// AnyProtected says whether any page that is there counts as not written, also
// in a mapping that is not tracked.
func (p *Pagemap) AnyProtected(r Range) (found bool, err error) {
	arg := p.there(scanArg{mask: uint64(Written), inverted: uint64(Written), result: uint64(Written), maxPages: 1})
	err = p.scan(r, arg, func(Run) { found = true })
	return found, err
}

// there narrows a scan to pages that are there. A guard marker counts as
// swapped for the kernel, but there is nothing behind it.
func (p *Pagemap) there(arg scanArg) scanArg {
	arg.anyOf = uint64(Present | Swapped)
	if KnowsGuards() {
		arg.mask |= uint64(Guard)
		arg.inverted |= uint64(Guard)
	}
	return arg
}

// KnowsGuards says whether this kernel tells guard markers from swapped pages
// (Linux 6.15).
var KnowsGuards = sync.OnceValue(func() bool {
	return tryScan(scanArg{mask: uint64(Guard), inverted: uint64(Guard)}) == nil
})

func (p *Pagemap) scan(r Range, arg scanArg, visit func(Run)) error {
	arg.size = uint64(unsafe.Sizeof(arg))
	arg.vec, arg.vecLen = uint64(uintptr(unsafe.Pointer(&p.regions[0]))), uint64(len(p.regions))
	arg.end = r.End
	for start := r.Start; start < r.End; {
		arg.start = start
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, p.file.Fd(), scanIoctl, uintptr(unsafe.Pointer(&arg)))
		if errno == unix.ESRCH {
			return fmt.Errorf("scan pages %#x-%#x of process %d: %w (%w)", start, r.End, p.pid, ErrGone, errno)
		}
		if errno != 0 {
			return fmt.Errorf("scan pages %#x-%#x of process %d: %w", start, r.End, p.pid, errno)
		}
		for _, region := range p.regions[:n] {
			visit(Run{Range{region.start, region.end}, Category(region.categories)})
		}
		// walk_end is no help: after a walk to the end the kernel may leave an
		// earlier value in it (seen on Linux 6.18 with more than 512 regions).
		// Only a full vector stops a walk early.
		if int(n) < len(p.regions) {
			break
		}
		start = p.regions[n-1].end
	}
	return nil
}

// CanScan says whether this kernel has PAGEMAP_SCAN (Linux 6.7).
var CanScan = sync.OnceValue(func() bool { return tryScan(scanArg{anyOf: uint64(Present)}) == nil })

// tryScan runs a scan over a page of this process.
func tryScan(arg scanArg) error {
	p, err := OpenPagemap(os.Getpid())
	if err != nil {
		return err
	}
	defer p.Close()
	var probe [1]byte
	at := uint64(uintptr(unsafe.Pointer(&probe))) &^ (PageSize - 1)
	return p.scan(Range{at, at + PageSize}, arg, func(Run) {})
}
