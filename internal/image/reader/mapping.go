package reader

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/store"
)

// resident is how much of mapped shards is read before all that was mapped is let go, in bytes. The page cache keeps it; this
// only bounds what counts as our memory.
const resident = 32 << 20

// shardFile is a shard open for reading. It is mapped where it has a descriptor: hashing a block right in the page cache takes
// two thirds of the time that copying it out first does.
//
// Two things can go wrong with mapped files. One that is truncated after it was opened has no pages any more, and touching
// them is a SIGBUS: guard makes an error of that. And one that is overwritten between the check of a block and the use of what
// ReadBlock returned is used as overwritten; nothing that writes checkpoints does that, they are never changed.
type shardFile struct {
	store.File        // nil: dropped, there is only the mapping
	mapped     []byte // nil: not mapped
	touched    atomic.Bool
}

// newShardFile takes f over. Where it can't be mapped it is read.
func newShardFile(f store.File) *shardFile {
	s := &shardFile{File: f}
	if f.Fd() == NoFd || f.Size() <= 0 || f.Size() != int64(int(f.Size())) {
		return s
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(f.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return s
	}
	_ = unix.Madvise(m, unix.MADV_SEQUENTIAL) // read ahead more: workers together read each shard from front to back
	s.mapped = m
	return s
}

// smallShard is what it does not pay to map, in bytes: of those a few blocks are read, and mapping and unmapping take longer than that.
const smallShard = 1 << 20

// maxKeptOpen is how many small shards of ancestors a checkpoint keeps open at most. It is a quarter of what this process may have
// open: the folders of the ancestors are held open, too.
var maxKeptOpen = sync.OnceValue(func() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return int(min(limit.Cur/4, 1<<16))
})

// newAncestorFile takes a shard of an ancestor over, with so many others open. One that is mapped is not kept open: a chain may have
// more shards than a process may have files open.
func newAncestorFile(f store.File, others int) (*shardFile, error) {
	if f.Size() <= smallShard && others < maxKeptOpen() {
		return &shardFile{File: f}, nil
	}
	s := newShardFile(f)
	if err := s.drop(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// bytes returns n bytes of the shard, in the mapping or in buf's storage.
func (s *shardFile) bytes(off int64, n int, buf *[]byte, mapped bool) ([]byte, error) {
	if mapped && s.mapped != nil && off+int64(n) <= int64(len(s.mapped)) {
		s.touched.Store(true)
		return s.mapped[off : off+int64(n)], nil
	}
	if cap(*buf) < n {
		*buf = make([]byte, max(n, int(ondisk.BlockLen(1, image.MaxBlock))))
	}
	b := (*buf)[:n]
	if s.File == nil {
		if off+int64(n) > int64(len(s.mapped)) {
			return nil, errTruncated
		}
		s.touched.Store(true)
		copy(b, s.mapped[off:])
		return b, nil
	}
	if _, err := s.ReadAt(b, off); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errTruncated
		}
		return nil, err
	}
	return b, nil
}

// drop closes the descriptor of a shard that is mapped: it is not needed for reading then. A chain may have more shards than a
// process may have files open.
func (s *shardFile) drop() error {
	if s.mapped == nil {
		return nil
	}
	f := s.File
	s.File = nil
	return f.Close()
}

// letGo makes what was read no longer count as our memory. For a shared mapping this loses nothing: whoever still uses a part of
// it gets it back from the page cache.
func (s *shardFile) letGo() {
	if s != nil && s.mapped != nil && s.touched.Swap(false) {
		_ = unix.Madvise(s.mapped, unix.MADV_DONTNEED)
	}
}

// errTruncated says that a shard became shorter after it was opened.
var errTruncated = errors.New("the file was truncated or replaced while it was read, or the disk failed")

// guard makes pages of the mapping that can't be read an error of the calling function, instead of the end of the program. It is
// used as: defer s.guard(&err)().
func (s *shardFile) guard(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			if !s.isFault(p) {
				panic(p)
			}
			*err = errTruncated
		}
	}
}

func (s *shardFile) isFault(p any) bool {
	fault, ok := p.(interface{ Addr() uintptr })
	if !ok || len(s.mapped) == 0 {
		return false
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(s.mapped)))
	return fault.Addr() >= start && fault.Addr()-start < uintptr(len(s.mapped))
}

// Close ends the mapping and closes the file.
func (s *shardFile) Close() error {
	var err error
	if s.mapped != nil {
		if err = unix.Munmap(s.mapped); err != nil {
			err = fmt.Errorf("cannot unmap a shard: %w", err)
		}
		s.mapped = nil
	}
	if s.File == nil {
		return err
	}
	return errors.Join(err, s.File.Close())
}
