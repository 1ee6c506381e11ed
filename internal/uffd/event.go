//go:build linux && (amd64 || arm64)

package uffd

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Kind says what an Event is about. The values are the kernel's.
type Kind uint8

// What events are about.
const (
	Fault  Kind = 0x12 // Addr was touched; Flags
	Fork   Kind = 0x13 // FD is the child's own userfaultfd
	Remap  Kind = 0x14 // [Addr, End) is now at To
	Remove Kind = 0x15 // [Addr, End) is about to lose its pages
	Unmap  Kind = 0x16 // [Addr, End) is gone
)

// Flags of a Fault.
const (
	FaultWrite = 1 << 0
	FaultWP    = 1 << 1
)

// Event is one message of a userfaultfd. Which fields count depends on Kind.
type Event struct {
	Kind      Kind
	Flags     uint64
	Addr, End uint64 // bytes, End exclusive
	To        uint64
	FD        int // Fork: a fresh descriptor, the reader's to close
}

// messageSize is sizeof(struct uffd_msg).
const messageSize = 32

// batch is how many messages one read takes at most.
const batch = 32

// ReadEvents fills events with what has come in and returns how many; EAGAIN
// on a non-blocking descriptor with nothing to read. Faults come before other
// events, whatever their true order. Reading an event lets the thread that
// caused it go on.
func (f *FD) ReadEvents(events []Event) (int, error) {
	var buf [batch * messageSize]byte
	want := min(len(events), batch) * messageSize
	for {
		n, err := unix.Read(f.fd, buf[:want])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read userfaultfd: %w", err)
		}
		count := n / messageSize
		for i := range count {
			events[i] = decode(buf[i*messageSize:])
		}
		return count, nil
	}
}

// decode reads one struct uffd_msg: the kind in byte 0, its arguments from byte 8.
func decode(m []byte) Event {
	arg := func(i int) uint64 { return binary.NativeEndian.Uint64(m[8+8*i:]) }
	e := Event{Kind: Kind(m[0]), FD: -1}
	switch e.Kind {
	case Fault:
		e.Flags, e.Addr = arg(0), arg(1)
	case Fork:
		e.FD = int(int32(uint32(arg(0))))
	case Remap:
		e.Addr, e.To = arg(0), arg(1)
		e.End = e.Addr + arg(2)
	case Remove, Unmap:
		e.Addr, e.End = arg(0), arg(1)
	}
	return e
}
