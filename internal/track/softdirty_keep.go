package track

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Between two commands the bits stay with the process, and what else has to be
// known is in a file in memory (memfd_create(2)), whose descriptor is kept just
// as the userfaultfd of the other tracker is. A file that is empty or torn is an
// error, and the process then counts as not tracked.

// maxState bounds the file: 64 bytes for each table of 64 TiB of memory would be
// 2 GiB; a tracker that has grown beyond this is not kept.
const maxState = 256 << 20

// kept is what the file holds.
type kept struct {
	PID   int
	State state
}

// Fd implements [Tracker]; the descriptor has the state of now. It is -1 where
// there is nothing to keep.
func (s *SoftDirty) Fd() int {
	if len(s.state.Trusted) == 0 {
		return -1
	}
	if err := s.save(); err != nil {
		return -1
	}
	return int(s.file.Fd())
}

func (s *SoftDirty) save() error {
	if s.file == nil {
		fd, err := unix.MemfdCreate("stasis-soft-dirty", unix.MFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("keep the state of a tracker: %w", err)
		}
		s.file = os.NewFile(uintptr(fd), "stasis-soft-dirty")
	}
	if err := s.file.Truncate(0); err != nil {
		return err
	}
	into := bufio.NewWriter(io.NewOffsetWriter(s.file, 0))
	err := gob.NewEncoder(into).Encode(kept{s.pid, s.state})
	if err = errors.Join(err, into.Flush()); err != nil {
		return errors.Join(err, s.file.Truncate(0))
	}
	if info, err := s.file.Stat(); err != nil || info.Size() > maxState {
		return errors.Join(err, s.file.Truncate(0), errors.New("the state of the tracker is too large to be kept"))
	}
	return nil
}

// AdoptSoftDirty goes on with a tracker that an earlier command has left; it
// takes over the descriptor, also when there is an error.
func AdoptSoftDirty(hold Holder, pid, fd int) (*SoftDirty, error) {
	file := os.NewFile(uintptr(fd), "stasis-soft-dirty")
	s, err := adoptSoftDirty(hold, pid, file)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("take up the tracker of process %d: %w", pid, err)
	}
	return s, nil
}

func adoptSoftDirty(hold Holder, pid int, file *os.File) (*SoftDirty, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxState {
		return nil, fmt.Errorf("its state has %d bytes", info.Size())
	}
	var from kept
	if err := gob.NewDecoder(io.NewSectionReader(file, 0, info.Size())).Decode(&from); err != nil {
		return nil, fmt.Errorf("read its state: %w", err)
	}
	if from.PID != pid {
		return nil, fmt.Errorf("it is one of process %d", from.PID)
	}
	s, err := NewSoftDirty(hold, pid)
	if err != nil {
		return nil, err
	}
	s.state, s.file = from.State, file
	return s, nil
}
