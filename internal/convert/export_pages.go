package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/families"
	"stasis/internal/image/reader"
)

// writeMemory writes the page maps and the pages of the processes whose memory is in blocks. Every page has its place already, so
// blocks can be read in the order in which they lie, by several workers.
func (f *folder) writeMemory() (err error) {
	files := &pageFiles{dir: f.dir, open: map[string]*pageFile{}}
	defer func() { err = files.finish(err) }()
	for pid, l := range f.layouts {
		text, err := criu.EncodePagemap(l.pagesID, l.runs())
		if err != nil {
			return err
		}
		if err := f.writeFile(criu.PagemapImage(pid), text); err != nil {
			return err
		}
		if err := files.create(criu.PagesImage(l.pagesID), l.size); err != nil {
			return err
		}
	}
	for pid, l := range f.layouts {
		if err := f.copyOwn(l, files); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return f.copyBlocks(files)
}

// copyOwn copies the pages that CRIU has to their new places.
func (f *folder) copyOwn(l *layout, files *pageFiles) error {
	name := criu.PagesImage(l.pagesID)
	return files.use(name, func(to *pageFile) error {
		s := &scatter{to: to.file, slots: l.slots}
		if f.has(name) {
			if err := f.checkpoint.WriteFile(name, counted{s, f.ctx, &f.meter}); err != nil {
				return err
			}
		}
		return s.whole(name)
	})
}

// scatter writes the pages that CRIU has one after the other to their places.
type scatter struct {
	to    *os.File
	slots []slot // what is left, the first one perhaps in part
}

func (s *scatter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		s.skip()
		if len(s.slots) == 0 {
			return written, errors.New("there are more pages than the page map has")
		}
		next := &s.slots[0]
		n := min(int64(len(p)), int64(next.Pages*pageSize)-(next.done))
		if _, err := s.to.WriteAt(p[:n], next.at+next.done); err != nil {
			return written, err
		}
		next.done += n
		written += int(n)
		p = p[n:]
	}
	return written, nil
}

// skip drops slots that are done, or not CRIU's.
func (s *scatter) skip() {
	for len(s.slots) > 0 && (s.slots[0].from != fromCRIU || s.slots[0].done == int64(s.slots[0].Pages*pageSize)) {
		s.slots = s.slots[1:]
	}
}

// whole says whether all pages came.
func (s *scatter) whole(name string) error {
	if s.skip(); len(s.slots) > 0 {
		return fmt.Errorf("%s ends before the pages at %#x that its page map has", name, s.slots[0].Start)
	}
	return nil
}

var _ io.Writer = (*scatter)(nil)

// copyBlocks copies the pages of all blocks to their places. It goes by families: where differences are here and there, as in a long
// chain, each block is read once.
func (f *folder) copyBlocks(files *pageFiles) error {
	memory := families.Of(f.checkpoint)
	group, ctx := errgroup.WithContext(f.ctx)
	var next atomic.Int64
	for range max(f.options.Workers, 1) {
		group.Go(func() error {
			aligned, err := unix.Mmap(-1, 0, image.MaxBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err != nil {
				return fmt.Errorf("make a buffer: %w", err)
			}
			defer func() { _ = unix.Munmap(aligned) }()
			w := &blockWriter{folder: f, memory: memory, files: files, aligned: aligned}
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= memory.Blocks() {
					return nil
				}
				if err := w.copy(i); err != nil {
					return err
				}
			}
			return context.Cause(ctx)
		})
	}
	return group.Wait()
}

// blockWriter copies blocks, one after the other.
type blockWriter struct {
	*folder
	memory  *families.Families
	files   *pageFiles
	buffer  reader.Buffer
	aligned []byte // to a page
}

// copy reads a block if any page of it is wanted here, and writes these pages.
func (w *blockWriter) copy(i int) error {
	var data []byte
	for _, piece := range w.memory.Block(i).Pieces {
		l := w.layouts[piece.PID]
		err := l.each(piece.Addr, uint64(piece.Pages), func(s slot, skip uint64) (err error) {
			if s.from != fromBlocks {
				return nil
			}
			if data == nil {
				if data, err = w.memory.ReadBlock(i, &w.buffer); err != nil {
					return err
				}
			}
			from, n := (uint64(piece.First)+skip)*pageSize, s.Pages*pageSize
			w.meter.add(int64(n))
			return w.files.use(criu.PagesImage(l.pagesID), func(to *pageFile) error { return to.writeAt(data[from:from+n], s.at, w.aligned) })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// meter counts bytes for a progress bar.
type meter struct {
	mu    sync.Mutex
	done  int64 // guarded by mu
	total int64
	tell  func(done, total int64) // may be nil; called with mu held
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	if m.tell != nil {
		m.tell(m.done, m.total)
	}
}

// counted is a writer that is metered, and fails when the export is to end.
type counted struct {
	io.Writer
	ctx   context.Context
	meter *meter
}

func (c counted) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.Writer.Write(p)
	c.meter.add(int64(n))
	return n, err
}
