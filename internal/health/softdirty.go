package health

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// softDirtyBit is that of an entry of /proc/PID/pagemap
// (Documentation/admin-guide/mm/soft-dirty.rst).
const softDirtyBit = 1 << 55

// trySoftDirty clears the bits of this program, writes to one page of two, and
// looks whether the kernel tells them apart.
func trySoftDirty() (works bool, err error) {
	memory, err := unix.Mmap(-1, 0, 2*proc.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return false, fmt.Errorf("map two pages: %w", err)
	}
	defer unix.Munmap(memory)
	// One huge page would be one entry.
	unix.Madvise(memory, unix.MADV_NOHUGEPAGE) //nolint:errcheck // fails where there are none
	memory[0], memory[proc.PageSize] = 1, 1
	if err := os.WriteFile("/proc/self/clear_refs", []byte("4"), 0); err != nil {
		return false, fmt.Errorf("clear the bits: %w", err)
	}
	memory[0] = 2
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return false, fmt.Errorf("read the bits: %w", err)
	}
	defer pagemap.Close()
	entries := make([]byte, 16)
	at := uintptr(unsafe.Pointer(&memory[0]))
	if _, err := pagemap.ReadAt(entries, int64(at/proc.PageSize*8)); err != nil {
		return false, fmt.Errorf("read the bits: %w", err)
	}
	written := binary.NativeEndian.Uint64(entries)&softDirtyBit != 0
	quiet := binary.NativeEndian.Uint64(entries[8:])&softDirtyBit == 0
	return written && quiet, nil
}
