package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/proc"
)

// LazyDump is the other way to keep CRIU from writing memory, for a CRIU that
// no library can be preloaded into: a dump with lazy pages. CRIU collects the
// pages, and then serves them on a socket until it is told to end; Stasis tells
// it so without asking for a single one.
type LazyDump struct {
	ours, theirs *os.File
}

// Commands of CRIU's page server protocol (criu/page-xfer.c).
const forceClose = 0x1024

// NewLazyDump makes the socket; Close frees it.
func NewLazyDump() (*LazyDump, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket for CRIU's pages: %w", err)
	}
	return &LazyDump{os.NewFile(uintptr(fds[0]), "pages"), os.NewFile(uintptr(fds[1]), "page-server")}, nil
}

// Arrange makes a request a lazy dump, and returns the files for the request.
func (l *LazyDump) Arrange(opts *rpc.CriuOpts, files []*os.File, workDir string) ([]*os.File, error) {
	lazy := true
	opts.LazyPages = &lazy
	line := "ps-socket " + strconv.Itoa(FD(len(files)))
	return append(files, l.theirs), addConfig(opts, workDir, line)
}

// End tells CRIU that nobody wants the pages. It may be said before CRIU
// listens.
func (l *LazyDump) End() error {
	packet := make([]byte, 32)
	binary.LittleEndian.PutUint32(packet, forceClose)
	if _, err := l.ours.Write(packet); err != nil {
		return fmt.Errorf("end CRIU's page server: %w", err)
	}
	return nil
}

// Close frees the socket.
func (l *LazyDump) Close() { _ = errors.Join(l.ours.Close(), l.theirs.Close()) }

// Missing lists the memory that a lazy dump left out of the images of a
// process, joined and in address order.
func Missing(dir string, pid int) ([]proc.Range, error) {
	var ranges []proc.Range
	first := true
	err := readEntries(filepath.Join(dir, "pagemap-"+strconv.Itoa(pid)+".img"), func(raw []byte) error {
		if first {
			first = false
			return nil
		}
		var e pagemap.PagemapEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		if e.GetFlags()&pageLazy == 0 || e.GetFlags()&pagePresent != 0 {
			return nil
		}
		r := entryRange(&e)
		if n := len(ranges); n > 0 && ranges[n-1].End == r.Start {
			ranges[n-1].End = r.End
			return nil
		}
		ranges = append(ranges, r)
		return nil
	})
	return ranges, err
}
