//go:build linux && (amd64 || arm64)

// Package uffd is a thin layer over Linux's userfaultfd: the system call, its
// ioctls and its messages, as Go values. It decides nothing; internal/track
// and internal/pager do.
//
// Words: an address space is *armed* in the ranges that are registered with a
// descriptor. A *missing* fault is a touch of a page that is not there; the
// thread sleeps until COPY or ZEROPAGE puts a page there, or WAKE makes it try
// again. An *event* tells of a change of the address space (fork, mremap,
// madvise, munmap); the thread that makes the change sleeps until the event is
// read.
//
// Every method may be called from several goroutines at once, Close excepted:
// nothing may be under way when it is called. Errors wrap the errno, so that
// errors.Is(err, unix.EAGAIN) works. Addresses and lengths are bytes and must
// be multiples of the page size.
//
// Sources: ioctl_userfaultfd(2), the kernel's
// Documentation/admin-guide/mm/userfaultfd.rst, include/uapi/linux/userfaultfd.h.
package uffd

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// UserModeOnly is the flag of New that a caller without CAP_SYS_PTRACE needs:
// faults that the kernel itself takes in this memory are not handled. Linux 5.11.
const UserModeOnly = 1

// Features for API. A kernel that lacks a requested one refuses the handshake.
const (
	FeatureWP            = 1 << 0  // Linux 5.7
	FeatureEventFork     = 1 << 1  // needs CAP_SYS_PTRACE
	FeatureEventRemap    = 1 << 2  // mremap
	FeatureEventRemove   = 1 << 3  // MADV_DONTNEED, MADV_FREE, MADV_REMOVE
	FeatureEventUnmap    = 1 << 6  // munmap and what else unmaps
	FeatureWPUnpopulated = 1 << 13 // write protection of pages that are not there; Linux 6.4
	FeatureWPAsync       = 1 << 15 // the kernel resolves write faults itself; Linux 6.7
)

// Modes for Register.
const (
	RegisterMissing = 1 << 0
	RegisterWP      = 1 << 1
)

// Modes for Copy, ZeroPage and WriteProtect.
const (
	CopyDontWake     = 1 << 0
	CopyWP           = 1 << 1
	ZeroPageDontWake = 1 << 0
	WriteProtectOn   = 1 << 0
	WriteDontWake    = 1 << 1
)

const apiVersion = 0xAA

// ioctl numbers: _IOWR/_IOR(0xAA, nr, struct), the same on amd64 and arm64.
const (
	ioAPI          = 0xc018aa3f
	ioRegister     = 0xc020aa00
	ioUnregister   = 0x8010aa01
	ioWake         = 0x8010aa02
	ioCopy         = 0xc028aa03
	ioZeroPage     = 0xc020aa04
	ioWriteProtect = 0xc018aa06
	ioContinue     = 0xc020aa07
)

type argAPI struct{ api, features, ioctls uint64 }

type argRange struct{ start, len uint64 }

type argRegister struct {
	argRange
	mode, ioctls uint64
}

// argCopy keeps the source as a pointer (8 bytes on the architectures above):
// the garbage collector and a moving stack then know of it.
type argCopy struct {
	dst  uint64
	src  unsafe.Pointer
	len  uint64
	mode uint64
	done int64
}

type argZeroPage struct {
	argRange
	mode uint64
	done int64
}

type argWriteProtect struct {
	argRange
	mode uint64
}

// FD is a userfaultfd.
type FD struct{ fd int }

// New opens a userfaultfd for the calling process. It is close-on-exec, and
// further flags are unix.O_NONBLOCK and UserModeOnly. Nothing but API may be
// called on it before API has succeeded.
func New(flags int) (*FD, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags|unix.O_CLOEXEC), 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	return &FD{fd: int(fd)}, nil
}

// FromFD takes over a descriptor that another process has opened; Close closes it.
func FromFD(fd int) *FD { return &FD{fd: fd} }

// Fd returns the descriptor's number. It stays f's.
func (f *FD) Fd() int { return f.fd }

// Close closes the descriptor. When it was the last copy, the kernel forgets
// all registrations and threads that sleep in a fault get a zero page.
func (f *FD) Close() error { return unix.Close(f.fd) }

// API does the handshake, asking for the given features, and returns the
// features that the kernel has. EINVAL: a feature is unknown to this kernel,
// or the handshake was done before; EPERM: FeatureEventFork without
// CAP_SYS_PTRACE.
func (f *FD) API(features uint64) (uint64, error) {
	a := argAPI{api: apiVersion, features: features}
	if err := f.ioctl("UFFDIO_API", ioAPI, unsafe.Pointer(&a)); err != nil {
		return 0, err
	}
	return a.features, nil
}

// Register arms a range. Every mapping in it must be of a kind that the modes
// can work on (EINVAL), and there must be at least one.
func (f *FD) Register(start, length, mode uint64) error {
	a := argRegister{argRange: argRange{start, length}, mode: mode}
	return f.ioctl("UFFDIO_REGISTER", ioRegister, unsafe.Pointer(&a))
}

// Unregister disarms a range and wakes who sleeps there.
func (f *FD) Unregister(start, length uint64) error {
	a := argRange{start, length}
	return f.ioctl("UFFDIO_UNREGISTER", ioUnregister, unsafe.Pointer(&a))
}

// Copy puts fresh pages with the content of src at dst and wakes who waits for
// them. It returns the number of bytes that are in place, which may be less
// than len(src) with an error (EAGAIN) that is not worth a look: call again for
// the rest, and see what that says. With nothing copied:
//
//	EEXIST  there is a page at dst
//	EAGAIN  the mappings are changing: an event waits to be read
//	ENOENT  the range does not lie within one armed mapping
//	ESRCH   the process has ended or has called exec
//	EFAULT  src could not be read (a file behind it was truncated)
func (f *FD) Copy(dst uint64, src []byte, mode uint64) (int, error) {
	if len(src) == 0 {
		return 0, nil
	}
	a := argCopy{dst: dst, src: unsafe.Pointer(unsafe.SliceData(src)), len: uint64(len(src)), mode: mode}
	err := f.ioctl("UFFDIO_COPY", ioCopy, unsafe.Pointer(&a))
	runtime.KeepAlive(src)
	return int(max(a.done, 0)), err
}

// PrepareAnon sees to it that the parts of the mapping at addr, should it be
// split, can be joined again when they are alike. The kernel joins what has the
// same anon_vma, and gives that to a mapping with its first page: parts that get
// their first pages alone stay parts for good, and mremap(2) works on one. A copy
// gets as far as that before it fails for a source that cannot be read, so this
// changes nothing else, but that there is a page table for addr then, where no huge
// page will come. The mapping has to be armed there.
func (f *FD) PrepareAnon(addr uint64) error {
	source, err := unreadable()
	if err != nil {
		return err
	}
	_, err = f.Copy(addr, source, 0)
	switch {
	case errors.Is(err, unix.EFAULT):
		return nil
	case err == nil:
		return errors.New("UFFDIO_COPY has read what cannot be read")
	}
	return err
}

// unreadable is a page that nobody can read.
var unreadable = sync.OnceValues(func() ([]byte, error) {
	return unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
})

// ZeroPage maps the shared zero page over a range; results are those of Copy.
func (f *FD) ZeroPage(start, length, mode uint64) (int, error) {
	a := argZeroPage{argRange: argRange{start, length}, mode: mode}
	err := f.ioctl("UFFDIO_ZEROPAGE", ioZeroPage, unsafe.Pointer(&a))
	return int(max(a.done, 0)), err
}

// Wake makes the threads that sleep in a range try again.
func (f *FD) Wake(start, length uint64) error {
	a := argRange{start, length}
	return f.ioctl("UFFDIO_WAKE", ioWake, unsafe.Pointer(&a))
}

// WriteProtect protects (WriteProtectOn) or releases a range armed with
// RegisterWP. EAGAIN as for Copy.
func (f *FD) WriteProtect(start, length, mode uint64) error {
	a := argWriteProtect{argRange: argRange{start, length}, mode: mode}
	return f.ioctl("UFFDIO_WRITEPROTECT", ioWriteProtect, unsafe.Pointer(&a))
}

// Gone reports whether the address space has ended, by exit or exec. The
// descriptor itself never says so (no hang-up in poll), so this asks for
// something that can't be done on anonymous memory, UFFDIO_CONTINUE, and looks
// at the refusal. It changes nothing. addr is any page's address. A kernel
// before 5.13 always answers false.
func (f *FD) Gone(addr uint64) bool {
	a := argZeroPage{argRange: argRange{addr, uint64(unix.Getpagesize())}}
	return errors.Is(f.ioctl("UFFDIO_CONTINUE", ioContinue, unsafe.Pointer(&a)), unix.ESRCH)
}

// Changing reports whether the mappings are changing: some thread is between a
// change and the reading of its event. It asks for a zero page of a length that
// can't be, which the kernel looks at only after it has looked at this.
func (f *FD) Changing() bool {
	a := argZeroPage{argRange: argRange{0, 1}}
	return errors.Is(f.ioctl("UFFDIO_ZEROPAGE", ioZeroPage, unsafe.Pointer(&a)), unix.EAGAIN)
}

// callError tells errno apart by errors.Is without an allocation per call:
// EEXIST and EAGAIN are daily bread to a pager.
type callError struct {
	name  string
	errno unix.Errno
}

func (e callError) Error() string { return e.name + ": " + e.errno.Error() }
func (e callError) Unwrap() error { return e.errno }

func (f *FD) ioctl(name string, nr uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), nr, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return callError{name, errno}
	}
}
