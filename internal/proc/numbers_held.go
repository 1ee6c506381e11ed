package proc

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// held says which of the numbers the kernel would not give to a new process, in their order. It knows more than /proc shows: the
// number of a thread stays taken for a moment after the thread and its process are gone from there, for as long as the last bit of
// its end waits for a CPU, and a restore in that moment would fail.
//
// It asks by making each number the owner of a descriptor's signals, which the kernel looks up and does nothing about.
func held(numbers []int) ([]int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var taken []int
	for _, n := range numbers {
		owner := struct{ kind, pid int32 }{ownerThread, int32(n)}
		_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETOWN_EX, uintptr(unsafe.Pointer(&owner)))
		switch {
		case errno == 0:
			taken = append(taken, n)
		case !errors.Is(errno, unix.ESRCH):
			return nil, errno
		}
	}
	return taken, nil
}

// ownerThread is F_OWNER_TID of fcntl(2).
const ownerThread = 0
