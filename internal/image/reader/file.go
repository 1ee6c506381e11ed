package reader

import (
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sort"
	"sync"

	"stasis/internal/image"
	"stasis/internal/image/tables"
)

// File reads one of CRIU's image files at any place. It holds one piece of it, some 256 KiB. Its methods may be called at once,
// but take turns. It ends with its checkpoint.
type File struct {
	c      *Checkpoint
	pieces []tables.FileBlock
	size   int64

	mu   sync.Mutex
	buf  Buffer // guarded by mu
	data []byte // guarded by mu: of the last piece, in buf
	last int    // guarded by mu: its number, counted from 1; 0 is none
}

var _ io.ReaderAt = (*File)(nil)

// OpenFile opens one of CRIU's image files. A name that is not there is fs.ErrNotExist.
func (c *Checkpoint) OpenFile(name string) (*File, error) {
	i := slices.IndexFunc(c.FileTable, func(f image.FileInfo) bool { return f.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("checkpoint %s has no CRIU image %s: %w", c.src.Name(), name, fs.ErrNotExist)
	}
	return &File{c: c, pieces: c.PieceTable[i], size: c.FileTable[i].Size}, nil
}

// Size is the length in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt implements [io.ReaderAt]. Damage is a *DamageError.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read CRIU's image at %d: %w", off, fs.ErrInvalid)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n < len(p) {
		at := off + int64(n)
		if at >= f.size {
			return n, io.EOF
		}
		// Pieces follow each other without a gap, which Open has seen to.
		i := sort.Search(len(f.pieces), func(i int) bool { return f.pieces[i].Where > at }) - 1
		if f.last != i+1 {
			f.last = 0
			if f.data, err = f.c.ReadPayload(&f.pieces[i].Block, &f.buf, false); err != nil {
				return n, err
			}
			f.last = i + 1
		}
		n += copy(p[n:], f.data[at-f.pieces[i].Where:])
	}
	return n, nil
}
