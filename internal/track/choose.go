package track

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/inject"
	"stasis/internal/proc"
)

// Kind is a way to find out what a process writes.
type Kind string

// The kinds; KindAuto is the best one that works here.
const (
	KindAuto        Kind = "auto"
	KindUserfaultfd Kind = "userfaultfd" // WriteProtect
	KindSoftDirty   Kind = "soft-dirty"  // SoftDirty
	KindNone        Kind = "none"        // None
)

// Kinds are all that can be asked for.
func Kinds() []string {
	return []string{string(KindAuto), string(KindUserfaultfd), string(KindSoftDirty), string(KindNone)}
}

// Choose takes the best tracker that works on this kernel, which is found out by
// trying, or checks that the one asked for does. For KindAuto there is always
// one, and it misses nothing: soft-dirty bits are only taken where
// [SoftDirtyComplete] finds no fault with them. The error of another that does
// not work wraps [ErrUnavailable] and says why.
func Choose(asked Kind) (Kind, error) {
	return choose(asked, Available, SoftDirtyAvailable, SoftDirtyComplete)
}

func choose(asked Kind, userfaultfd, softDirty, complete func() error) (Kind, error) {
	switch asked {
	case KindAuto, "":
		switch {
		case userfaultfd() == nil:
			return KindUserfaultfd, nil
		case softDirty() == nil && complete() == nil:
			return KindSoftDirty, nil
		}
		return KindNone, nil
	case KindUserfaultfd:
		return asked, refused(asked, userfaultfd())
	case KindSoftDirty:
		return asked, refused(asked, softDirty())
	case KindNone:
		return asked, nil
	}
	return "", fmt.Errorf("tracker %q: it is one of %s", asked, strings.Join(Kinds(), ", "))
}

func refused(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("tracker %s: %w; use tracker %s, which takes what works here", kind, err, KindAuto)
}

// Start makes a tracker of a kind that [Choose] has returned. The helper is used
// as long as the tracker is.
func Start(kind Kind, helper *inject.Helper, pid int) (Tracker, error) {
	switch kind {
	case KindUserfaultfd:
		return NewWriteProtectBy(helper.Userfaultfd, pid)
	case KindSoftDirty:
		return NewSoftDirty(helper, pid)
	case KindNone:
		return NewNone(pid), nil
	}
	return nil, fmt.Errorf("there is no tracker %q", kind)
}

// Resume goes on with a tracker that an earlier command has left: with its kind
// and the descriptor of its Fd, which it takes over, also when there is an
// error.
func Resume(kind Kind, helper *inject.Helper, pid, fd int) (Tracker, error) {
	switch kind {
	case KindUserfaultfd:
		return Adopt(pid, fd)
	case KindSoftDirty:
		return AdoptSoftDirty(helper, pid, fd)
	}
	unix.Close(fd)
	return nil, fmt.Errorf("a tracker %q cannot be taken up", kind)
}

// SoftDirtyAvailable says whether this kernel has soft-dirty bits that work, by a
// trial on this process; nil if it has.
func SoftDirtyAvailable() error {
	pagemap, err := proc.OpenPagemap(os.Getpid())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer pagemap.Close()
	if _, err := proc.SameMemory(os.Getpid(), os.Getpid()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	const pages = 3
	memory, err := unix.Mmap(-1, 0, pages*proc.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer unix.Munmap(memory)
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // one huge page would be one bit; it fails where there are none
	return trySoftDirty(pagemap, memory)
}

// trySoftDirty writes to some pages and not to others, and checks that the page
// map tells the difference: clear_refs reports success also where it does
// nothing. One page changes its protection in between, at which Linux 5.19 lost
// track.
func trySoftDirty(pagemap *proc.Pagemap, memory []byte) error {
	page := func(i int) []byte { return memory[i*proc.PageSize : (i+1)*proc.PageSize] }
	for i := range len(memory) / proc.PageSize {
		page(i)[0] = 1
	}
	if err := clearSoftDirty(os.Getpid()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	err := errors.Join(unix.Mprotect(page(2), unix.PROT_READ), unix.Mprotect(page(2), unix.PROT_READ|unix.PROT_WRITE))
	if err != nil {
		return fmt.Errorf("%w: mprotect: %w", ErrUnavailable, err)
	}
	page(1)[0], page(2)[0] = 2, 2
	var entries []proc.Entry
	at := addressOf(memory)
	err = pagemap.Entries(proc.Range{Start: at, End: at + uint64(len(memory))}, func(_ uint64, some []proc.Entry) {
		entries = slices.Concat(entries, some)
	})
	runtime.KeepAlive(memory)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case len(entries) != len(memory)/proc.PageSize || entries[0].Place() == 0:
		return fmt.Errorf("%w: the page map does not say where pages are, which takes CAP_SYS_ADMIN outside of any user namespace", ErrUnavailable)
	case entries[0].SoftDirty() && entries[1].SoftDirty():
		return fmt.Errorf("%w: every page counts as written", ErrUnavailable)
	case !entries[0].SoftDirty() && !entries[1].SoftDirty():
		return fmt.Errorf("%w: the kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY is off)", ErrUnavailable)
	case entries[0].SoftDirty() || !entries[1].SoftDirty() || !entries[2].SoftDirty():
		return fmt.Errorf("%w: the kernel's soft-dirty bits are wrong: a trial write was missed", ErrUnavailable)
	}
	return nil
}

// SoftDirtyComplete says whether the soft-dirty bits of this kernel also tell of
// a write in the one case that is known to go wrong: in a mapping that is new in
// part, mprotect(2) makes a page writable without a bit, because the mapping as a
// whole counts as written; and when the mapping is then joined with an old one,
// that is forgotten (seen on Linux 6.1). The next write to the page leaves no
// trace. Only tracker soft-dirty itself, where it is asked for, takes that risk,
// as CRIU's own tracking does. The error wraps [ErrUnavailable].
func SoftDirtyComplete() error {
	const pages = 8
	memory, err := unix.Mmap(-1, 0, pages*proc.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer unix.Munmap(memory)
	part := func(from, to int) []byte { return memory[from*proc.PageSize : to*proc.PageSize] }
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE)
	for i := range pages {
		part(i, i+1)[0] = 1
	}
	const readWrite = unix.PROT_READ | unix.PROT_WRITE
	at := addressOf(memory)
	fresh := uintptr(at) + 6*proc.PageSize
	steps := []func() error{
		func() error { return unix.Mprotect(part(0, 2), unix.PROT_READ) },
		func() error { return clearSoftDirty(os.Getpid()) },
		func() error {
			_, _, errno := unix.Syscall6(unix.SYS_MMAP, fresh, proc.PageSize, readWrite,
				unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED, ^uintptr(0), 0)
			if errno != 0 {
				return errno
			}
			_ = unix.Madvise(part(6, 7), unix.MADV_NOHUGEPAGE) // joins it with its neighbours
			return nil
		},
		func() error { return unix.Mprotect(part(4, 5), unix.PROT_READ) },
		func() error { return unix.Mprotect(part(4, 5), readWrite) },
		func() error { return unix.Mprotect(part(0, 2), readWrite) }, // joins the old part
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	part(4, 5)[0]++
	pagemap, err := proc.OpenPagemap(os.Getpid())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer pagemap.Close()
	e, err := pagemap.Entry(at + 4*proc.PageSize)
	runtime.KeepAlive(memory)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !e.SoftDirty() {
		return fmt.Errorf("%w: the kernel's soft-dirty bits miss writes after mprotect in a mapping that was joined with another", ErrUnavailable)
	}
	return nil
}
