package track

import (
	"errors"
	"fmt"
	"os"
	"time"

	"stasis/internal/inject"
	"stasis/internal/proc"
)

// SoftDirty is a tracker that uses the kernel's soft-dirty bits, where
// CONFIG_MEM_SOFT_DIRTY is on (Documentation/admin-guide/mm/soft-dirty.rst). A
// bit is set with the first write to a page, and a write to
// /proc/PID/clear_refs clears those of all pages of a process.
//
// Why nothing is missed:
//
// Reading the bits and clearing them are two steps, and a page that is written
// between the two would lose its bit unseen. So no thread of the process runs
// between them: [inject.Helper.Hold] stops all of them, and it is checked that
// nobody else has the same address space. What is written before is in this
// round, what is written after in the next. Where the process cannot be stopped,
// the bits are read and left alone, and the next round finds the same pages again
// and those written since: more work, and nothing lost.
//
// The bits alone do not tell all changes. A page counts as unchanged only if its
// bit is clear and
//
//   - the last round looked at it: the bits of all pages are cleared, also of
//     those that were not asked for;
//   - it is in swap, or is mapped by this process alone. The kernel's shared
//     pages of zeros are not: they take the place of dropped pages when they are
//     read, without a bit being set;
//   - its page table is the one of the last round: mremap(2) can move a table with
//     its 512 pages in one go, bits and all, to where another one was. See
//     landmark;
//   - no other program has cleared the bits since. See canaries;
//   - the kernel has not merged pages of the process with equal ones (KSM): a
//     merged page has no bit, whenever it was written.
//
// So a new mapping, also at an old place, and all memory after exec count as
// written; after fork the pages that are still shared do as well. A write by
// something that is no thread of the process, such as a debugger, in the very
// moment between reading and clearing would be missed. Memory that a device is
// writing to (O_DIRECT) has its bits left alone by the kernel (Linux 5.11).
type SoftDirty struct {
	pid   int
	hold  Holder
	state state
	file  *os.File // the state for the next command, made when Fd asks for it
	doubt string
}

var _ Tracker = (*SoftDirty)(nil)

// A thread that waits for its child of vfork(2) does not stop, and in general not
// for long.
const (
	holdAttempts = 3
	holdPause    = 5 * time.Millisecond
)

// Holder stops the threads of a process; [inject.Helper] is one.
type Holder interface {
	Hold(pid int) (release func() error, err error)
}

var _ Holder = (*inject.Helper)(nil)

// NewSoftDirty makes a tracker for a process, and does nothing to it yet. Ask
// [Choose] whether the kernel has soft-dirty bits.
func NewSoftDirty(hold Holder, pid int) (*SoftDirty, error) {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/clear_refs", pid)); err != nil {
		return nil, fmt.Errorf("track process %d: %w", pid, proc.ErrGone)
	}
	return &SoftDirty{pid: pid, hold: hold}, nil
}

// Kind implements [Tracker].
func (s *SoftDirty) Kind() Kind { return KindSoftDirty }

// Close forgets what is known. The bits stay as they are: they mean nothing to
// the process.
func (s *SoftDirty) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// Doubt says why the last look took all memory as written, or "".
func (s *SoftDirty) Doubt() string { return s.doubt }

// Round implements [Tracker]. All threads of the process are stopped for as long
// as it takes to read and clear the bits.
func (s *SoftDirty) Round(mappings []proc.Mapping, visit func(proc.Run)) error {
	written, err := s.round(ranges(mappings))
	if err != nil {
		return err
	}
	for _, r := range written {
		if r.changed {
			visit(r.Run)
		}
	}
	return nil
}

// round reads the bits and, if the process can be stopped, clears them. It does
// not visit meanwhile: the process would stand still as long as the visitor works.
func (s *SoftDirty) round(of []proc.Range) ([]looked, error) {
	release, err := s.hold.Hold(s.pid)
	for again := 1; again < holdAttempts && errors.Is(err, inject.ErrUnsupported); again++ {
		time.Sleep(holdPause)
		release, err = s.hold.Hold(s.pid)
	}
	if errors.Is(err, inject.ErrUnsupported) {
		return s.look(of, nil)
	}
	if err != nil {
		return nil, err
	}
	written, err := s.roundHeld(of)
	if releaseErr := release(); releaseErr != nil {
		s.state = state{} // it may have run in between: the next round has everything
		err = errors.Join(err, releaseErr)
	}
	return written, err
}

func (s *SoftDirty) roundHeld(of []proc.Range) ([]looked, error) {
	next := state{Trusted: of}
	written, err := s.look(of, &next)
	if err != nil {
		return nil, err
	}
	alone, err := aloneWithMemory(s.pid)
	if err != nil || !alone {
		return written, err
	}
	return written, s.begin(next)
}

// begin clears the bits; the next look is compared with next. The process does
// not run.
func (s *SoftDirty) begin(next state) error {
	s.state = state{}
	if err := clearSoftDirty(s.pid); err != nil {
		return err
	}
	canaries, err := putCanaries(s.pid)
	if err != nil {
		return err
	}
	next.Canaries = canaries
	s.state = next
	return nil
}

// Rearm implements [Tracker].
func (s *SoftDirty) Rearm(of []proc.Range) error {
	of = proc.Join(of)
	next := state{Trusted: of}
	if _, err := s.look(of, &next); err != nil {
		return err
	}
	return s.begin(next)
}

// Look implements [Tracker].
func (s *SoftDirty) Look(of []proc.Range, visit func(r proc.Run, changed bool)) error {
	found, err := s.look(of, nil)
	if err != nil {
		return err
	}
	for _, r := range found {
		visit(r.Run, r.changed)
	}
	return nil
}

// Follows implements [Tracker]: after exec all bits are set, so that nothing
// has to be found out.
func (s *SoftDirty) Follows([]proc.Mapping) bool { return len(s.state.Trusted) > 0 }

func clearSoftDirty(pid int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("4"), 0)
	if err != nil {
		return fmt.Errorf("clear the soft-dirty bits of process %d: %w", pid, err)
	}
	return nil
}

func ranges(mappings []proc.Mapping) []proc.Range {
	list := make([]proc.Range, len(mappings))
	for i, m := range mappings {
		list[i] = m.Range
	}
	return proc.Join(list)
}
