package capture

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
)

// reader reads batches out of processes. It keeps the memory file of the last
// process open, because the pages that need it come in a row.
type reader struct {
	pid    int
	mem    *os.File
	remote []unix.RemoteIovec

	dropped []proc.Range // pages of the last batch that could not be read
}

func (r *reader) close() {
	if r.mem != nil {
		r.mem.Close()
	}
}

// read fills the buffer with the pages of a batch and returns what could be
// read: all of it, or fewer extents of a running process.
//
// process_vm_readv(2) is the fast way. It stops at the first hole and at memory
// without read permission, and it gives the process a copy of its own of every
// page that it shares since fork (the kernel pins what it reads). The memory
// file of /proc does neither.
func (r *reader) read(b batch, buffer []byte, frozen bool) ([]image.Extent, []byte, error) {
	r.dropped = r.dropped[:0]
	if b.shared {
		return r.readSlowly(b, buffer, frozen)
	}
	r.remote = r.remote[:0]
	for _, e := range b.extents {
		r.remote = append(r.remote, unix.RemoteIovec{Base: uintptr(e.Addr), Len: int(e.Pages) * proc.PageSize})
	}
	local := []unix.Iovec{{Base: &buffer[0], Len: uint64(b.bytes)}}
	n, err := unix.ProcessVMReadv(b.pid, local, r.remote, 0)
	switch {
	case n == b.bytes:
		return b.extents, buffer[:n], nil
	case errors.Is(err, unix.ESRCH) && !frozen:
		return nil, nil, nil // the process has ended; the freeze will show it
	case err != nil && !errors.Is(err, unix.EFAULT):
		return nil, nil, fmt.Errorf("read the memory of process %d: %w", b.pid, err)
	}
	return r.readSlowly(b, buffer, frozen)
}

// readSlowly reads through /proc/PID/mem, run by run, and page by page where a
// run has holes.
func (r *reader) readSlowly(b batch, buffer []byte, frozen bool) ([]image.Extent, []byte, error) {
	if err := r.openMem(b.pid); err != nil {
		if !frozen && (errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)) {
			return nil, nil, nil // the process has ended, or has no memory any more
		}
		return nil, nil, err
	}
	var got []image.Extent
	filled := 0
	for _, e := range b.extents {
		size := int(e.Pages) * proc.PageSize
		if n, _ := r.mem.ReadAt(buffer[filled:filled+size], int64(e.Addr)); n == size {
			got = append(got, e)
			filled += size
			continue
		}
		for page := range uint64(e.Pages) {
			addr := e.Addr + page*proc.PageSize
			n, err := r.mem.ReadAt(buffer[filled:filled+proc.PageSize], int64(addr))
			if n == proc.PageSize {
				got = append(got, image.Extent{Addr: addr, Pages: 1})
				filled += n
			} else if frozen {
				return nil, nil, fmt.Errorf("read page %#x of frozen process %d: %w", addr, b.pid, err)
			} else {
				r.dropped = append(r.dropped, proc.Range{Start: addr, End: addr + proc.PageSize})
			}
		}
	}
	return got, buffer[:filled], nil
}

func (r *reader) openMem(pid int) error {
	if r.mem != nil && r.pid == pid {
		return nil
	}
	r.close()
	var err error
	if r.mem, err = os.Open(fmt.Sprintf("/proc/%d/mem", pid)); err != nil {
		r.mem = nil
		return fmt.Errorf("open the memory of process %d: %w", pid, err)
	}
	r.pid = pid
	return nil
}
