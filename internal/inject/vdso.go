package inject

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// syscallInstruction is "syscall" on x86-64.
var syscallInstruction = []byte{0x0f, 0x05}

// FindSyscall finds a "syscall" instruction in the vdso of the process. The
// kernel maps the same vdso code into every process, so it is read from there
// and nothing of the program has to be searched.
func FindSyscall(pid int) (uint64, error) {
	maps, err := proc.Maps(pid)
	if err != nil {
		return 0, err
	}
	for _, m := range maps {
		if m.Path != "[vdso]" {
			continue
		}
		code := make([]byte, m.Len())
		local := []unix.Iovec{{Base: &code[0], Len: m.Len()}}
		remote := []unix.RemoteIovec{{Base: uintptr(m.Start), Len: int(m.Len())}}
		n, err := unix.ProcessVMReadv(pid, local, remote, 0)
		if errors.Is(err, unix.EFAULT) {
			return 0, errMoved
		}
		if err != nil {
			return 0, fmt.Errorf("read the vdso of process %d: %w", pid, err)
		}
		if at := bytes.Index(code[:n], syscallInstruction); at >= 0 {
			return m.Start + uint64(at), nil
		}
	}
	return 0, fmt.Errorf("process %d has no vdso with a syscall instruction: %w", pid, ErrUnsupported)
}
