package proc

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Layout answers where the mappings of a process are right now, one address at
// a time, in about a microsecond (PROCMAP_QUERY, Linux 6.11).
type Layout struct{ file *os.File }

// Raw layout of struct procmap_query (linux/fs.h).
type procmapQuery struct {
	size, flags, addr              uint64
	start, end, vmaFlags, pageSize uint64
	offset, inode                  uint64
	devMajor, devMinor             uint32
	nameSize, buildIDSize          uint32
	nameAddr, buildIDAddr          uint64
}

const (
	procmapIoctl     = 0xc0686611 // PROCMAP_QUERY
	coveringOrNext   = 0x10       // PROCMAP_QUERY_COVERING_OR_NEXT_VMA
	procmapShared    = 0x08       // PROCMAP_QUERY_VMA_SHARED
	noSuchMapping    = unix.ENOENT
	queryUnsupported = unix.ENOTTY
)

// ErrNoQuery says that the kernel cannot be asked for single mappings.
var ErrNoQuery = errors.New("PROCMAP_QUERY is not in this kernel (Linux 6.11)")

// OpenLayout opens the layout of a process; the caller closes it.
func OpenLayout(pid int) (*Layout, error) {
	file, err := os.Open(path(pid, "maps"))
	if err != nil {
		return nil, gone(pid, "maps", err)
	}
	return &Layout{file}, nil
}

// Close closes the layout.
func (l *Layout) Close() error { return l.file.Close() }

// At returns the mapping at an address, or the next one behind it; the zero
// Range when there is none. The error wraps [ErrNoQuery] on older kernels.
func (l *Layout) At(addr uint64) (Range, error) {
	r, _, err := l.Look(addr)
	return r, err
}

// Look is At, and says besides whether the mapping is private and has no file,
// the heap and stacks among them.
func (l *Layout) Look(addr uint64) (r Range, anonymous bool, err error) {
	q := procmapQuery{flags: coveringOrNext, addr: addr}
	q.size = uint64(unsafe.Sizeof(q))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, l.file.Fd(), procmapIoctl, uintptr(unsafe.Pointer(&q)))
	switch errno {
	case 0:
		return Range{q.start, q.end}, q.vmaFlags&procmapShared == 0 && q.inode == 0, nil
	case noSuchMapping:
		return Range{}, false, nil
	case queryUnsupported:
		return Range{}, false, ErrNoQuery
	}
	return Range{}, false, fmt.Errorf("ask for the mapping at %#x: %w", addr, errno)
}
