package pageserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"stasis/internal/image"
)

// Commands of the protocol.
const (
	cmdAdd        = 1
	cmdHole       = 2
	cmdOpen       = 3
	cmdOpenAnswer = 4
	cmdParent     = 5
	cmdRun        = 6
	cmdGet        = 7
	cmdClose      = 0x1023
	cmdForceClose = 0x1024
)

// Flags of a run.
const (
	flagParent  = 1 << 0
	flagLazy    = 1 << 1
	flagPresent = 1 << 2
)

// maxAddr ends the user's part of any address space.
const maxAddr = 1 << 57

// ErrProtocol is wrapped by errors that say that a peer does not speak the protocol as this package knows it.
var ErrProtocol = errors.New("that is not CRIU's page-server protocol")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// layout is the form that a peer's heads have; its value is their length.
type layout int

const (
	unknownLayout layout = 0
	shortLayout   layout = 24 // CRIU 4.1 and older
	longLayout    layout = 32 // CRIU 4.2
)

// head is what a message begins with.
type head struct {
	cmd   uint16
	flags uint16
	pages uint64
	addr  uint64
	id    uint64
}

var le = binary.LittleEndian

// layoutOf tells by the first 24 bytes of a connection which layout it has. They must be one of the commands that a connection
// begins with. Nothing can be told from the end of a session that never was, which is unknownLayout.
func layoutOf(b []byte) (layout, error) {
	second, third := le.Uint64(b[8:]), le.Uint64(b[16:])
	switch cmd := le.Uint16(b); cmd {
	case cmdClose, cmdForceClose:
		return unknownLayout, nil
	case cmdOpen, cmdOpenAnswer, cmdParent:
		// Address and number of pages are 0, the pagemap never is.
		switch {
		case second == 0 && third == 0:
			return longLayout, nil
		case second == 0:
			return shortLayout, nil
		}
	case cmdGet:
		// No process has pages at the lowest addresses, and nobody asks for so many pages at once.
		const lowest = 1 << 16
		switch {
		case second != 0 && second < lowest && third >= lowest && third%image.PageSize == 0:
			return longLayout, nil
		case second >= lowest && second%image.PageSize == 0:
			return shortLayout, nil
		}
	default:
		return 0, refuse("a connection can't begin with command %d", cmd)
	}
	return 0, refuse("the first message has impossible values")
}

// decodeHead reads a head. b has the length of its layout.
func decodeHead(l layout, b []byte) head {
	h := head{cmd: le.Uint16(b), flags: le.Uint16(b[2:])}
	if l == shortLayout {
		h.pages, h.addr, h.id = uint64(le.Uint32(b[4:])), le.Uint64(b[8:]), le.Uint64(b[16:])
	} else {
		h.pages, h.addr, h.id = le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])
	}
	return h
}

func (h head) encode(l layout) []byte {
	b := make([]byte, l)
	le.PutUint16(b, h.cmd)
	le.PutUint16(b[2:], h.flags)
	if l == shortLayout {
		le.PutUint32(b[4:], uint32(h.pages))
		le.PutUint64(b[8:], h.addr)
		le.PutUint64(b[16:], h.id)
	} else {
		le.PutUint64(b[8:], h.pages)
		le.PutUint64(b[16:], h.addr)
		le.PutUint64(b[24:], h.id)
	}
	return b
}

// rng is the range of addresses that a head tells of, which may be empty.
func (h head) rng() (image.Range, error) {
	if h.addr%image.PageSize != 0 || h.addr > maxAddr || h.pages > (maxAddr-h.addr)/image.PageSize {
		return image.Range{}, refuse("%d pages at %#x are no range of memory", h.pages, h.addr)
	}
	return image.Range{Start: h.addr, End: h.addr + h.pages*image.PageSize}, nil
}

// pagemapID names a pagemap.
type pagemapID struct {
	shared bool
	number uint64 // pid, or CRIU's number of a segment
}

func (p pagemapID) String() string {
	if p.shared {
		return fmt.Sprintf("shared memory %d", p.number)
	}
	return fmt.Sprintf("process %d", p.number)
}

// decodePagemap reads the name of a pagemap. The kinds other than 1 and 2 are from CRIU versions up to 3.2.
func decodePagemap(id uint64) (pagemapID, error) {
	p := pagemapID{number: id >> 8}
	switch kind := id & 0xff; kind {
	case 1, 10, 11, 16, 17:
		if p.number == 0 || p.number > math.MaxInt32 {
			return p, refuse("%d is no process id", p.number)
		}
	case 2, 27, 28, 29, 32, 33, 34:
		p.shared = true
	default:
		return p, refuse("memory of an unknown kind, %d", kind)
	}
	return p, nil
}

// runKind is what a message says of a run of pages.
type runKind int

const (
	runPages runKind = iota // they follow
	runHole                 // they are in the parent
)

// kind says what a message of the three commands for runs means.
func (h head) kind() (runKind, error) {
	flags := h.flags
	switch h.cmd {
	case cmdAdd:
		flags = flagPresent
	case cmdHole:
		flags = flagParent
	}
	switch {
	case flags&^(flagParent|flagLazy|flagPresent) != 0:
		return 0, refuse("unknown flags %#x: that CRIU is newer than this Stasis knows", flags)
	case flags&flagPresent != 0:
		return runPages, nil
	case flags&flagParent != 0:
		return runHole, nil
	case flags&flagLazy != 0:
		return 0, refuse("the sender keeps pages back for a lazy migration, and a checkpoint would lack them: dump without --lazy-pages")
	}
	return 0, refuse("a run of pages that are nowhere")
}
