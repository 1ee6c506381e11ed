package track

import (
	"golang.org/x/sys/unix"

	"stasis/internal/proc"
	"stasis/internal/uffd"
)

// Adopt goes on with a tracker that an earlier command armed: it takes over the
// descriptor, also when there is an error. The next round has what was written
// since the last round of that command.
func Adopt(pid, fd int) (*WriteProtect, error) {
	pagemap, err := proc.OpenPagemap(pid)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	layout, err := proc.OpenLayout(pid)
	if err != nil {
		unix.Close(fd)
		pagemap.Close()
		return nil, err
	}
	return &WriteProtect{pid: pid, fd: uffd.FromFD(fd), pagemap: pagemap, layout: layout, adopted: true}, nil
}

// Fd returns the descriptor that keeps the tracking alive. It stays the
// tracker's.
func (w *WriteProtect) Fd() int { return w.fd.Fd() }

// Follows says whether the tracker is one of the address space that the process
// has now. It is not when the process has executed another program: the tracker
// then follows nothing, and all memory counts as written.
func (w *WriteProtect) Follows(mappings []proc.Mapping) bool {
	w.findForeign(mappings)
	for _, m := range mappings {
		armed, err := w.arm(m.Range)
		if err != nil {
			return false // there is no such address space any more
		}
		if !armed {
			continue // it may have gone, or be another userfaultfd's
		}
		there, follows := false, false
		if err := w.pagemap.Scan(m.Range, func(r proc.Run) {
			there, follows = true, follows || r.Categories&proc.WPAllowed != 0
		}); err != nil {
			return false
		}
		if there {
			return follows
		}
	}
	return false
}
