package track

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// Soft-dirty bits belong to nobody: any program with the right to do so, such as
// CRIU with --track-mem, may clear them for purposes of its own, and what was
// written before then looks unchanged. Canaries show it: pages that the program
// itself does not write, and whose bits are set again, by writing what is there
// already, just after all bits were cleared. Nobody but another clearing takes
// such a bit away.

const (
	// canaries is how many there are: the more, the less can it happen that the
	// program writes to all of them after another clearing.
	canaries = 4

	// canaryMapping is the largest mapping that is searched for a canary, bytes.
	canaryMapping = 1 << 20
)

// putCanaries sets the bits of some pages. The process does not run, so that
// nobody can write between the reading and the writing back.
func putCanaries(pid int) (at []uint64, err error) {
	candidates, err := canaryCandidates(pid)
	if err != nil {
		return nil, err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("open the memory of process %d: %w", pid, proc.ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open the memory of process %d: %w", pid, err)
	}
	defer memory.Close()
	pagemap, err := proc.OpenPagemap(pid)
	if err != nil {
		return nil, err
	}
	defer pagemap.Close()
	for _, page := range candidates {
		var word [8]byte
		if _, err := memory.ReadAt(word[:], int64(page)); err != nil {
			continue
		}
		if _, err := memory.WriteAt(word[:], int64(page)); err != nil {
			continue // some kernels refuse it in memory that is read-only
		}
		if e, err := pagemap.Entry(page); err == nil && e.SoftDirty() {
			at = append(at, page)
		}
	}
	return at, nil
}

// canaryCandidates lists pages that are the process' own and that it hardly ever
// writes: the end of its stack, where its arguments and its environment are, and
// pages in memory that has been made read-only, such as what the dynamic linker
// has filled in.
func canaryCandidates(pid int) (pages []uint64, err error) {
	maps, err := proc.Maps(pid)
	if err != nil {
		return nil, err
	}
	pagemap, err := proc.OpenPagemap(pid)
	if err != nil {
		return nil, err
	}
	defer pagemap.Close()
	for _, m := range maps {
		if m.Path == "[stack]" {
			pages = append(pages, m.End-proc.PageSize)
		}
	}
	for _, m := range maps {
		if len(pages) >= canaries {
			break
		}
		if !m.Private() || m.Perms[0] != 'r' || m.Perms[1] == 'w' || m.Len() > canaryMapping {
			continue
		}
		found := false
		err := pagemap.Entries(m.Range, func(at uint64, entries []proc.Entry) {
			for i, e := range entries {
				if !found && e.Present() && e.Exclusive() && !e.File() {
					pages, found = append(pages, at+uint64(i)*proc.PageSize), true
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return pages, nil
}

// doubt says why the bits cannot be believed, or "".
func (s *state) doubt(pid int, pagemap *proc.Pagemap) string {
	if len(s.Trusted) == 0 {
		return "" // nothing is believed anyway
	}
	if proc.Merged(pid) {
		return "the kernel has merged equal pages of it with others (KSM), and forgets the bits of those"
	}
	left := 0
	for _, page := range s.Canaries {
		switch e, err := pagemap.Entry(page); {
		case err != nil || !e.There():
		case !e.SoftDirty():
			return "another program has cleared the soft-dirty bits"
		default:
			left++
		}
	}
	if left == 0 {
		return "it cannot be told whether another program has cleared the soft-dirty bits"
	}
	return ""
}

// aloneWithMemory says whether no other process has the same address space, as a
// child of vfork(2) has until it executes a program. Threads of the process do
// not count.
func aloneWithMemory(pid int) (bool, error) {
	folder, err := os.Open("/proc")
	if err != nil {
		return false, fmt.Errorf("list the processes: %w", err)
	}
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return false, fmt.Errorf("list the processes: %w", err)
	}
	for _, name := range names {
		other, err := strconv.Atoi(name)
		if err != nil || other == pid {
			continue
		}
		same, err := proc.SameMemory(pid, other)
		if err != nil {
			return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if same {
			return false, nil
		}
	}
	return true, nil
}
