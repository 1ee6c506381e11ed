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

	"stasis/internal/criu"
	"stasis/internal/image"
)

// writeMemory writes the page maps and the pages of the processes whose memory is in blocks. Every page has its place already, so
// blocks can be read in the order in which they lie, by several workers.
func (f *folder) writeMemory() (err error) {
	files := make(map[int]*os.File, len(f.layouts))
	defer func() {
		for _, file := range files {
			err = errors.Join(err, finishFile(file, err))
		}
	}()
	for pid, l := range f.layouts {
		text, err := criu.EncodePagemap(l.pagesID, l.runs())
		if err != nil {
			return err
		}
		if err := f.writeFile(criu.PagemapImage(pid), text); err != nil {
			return err
		}
		if files[pid], err = f.create(criu.PagesImage(l.pagesID)); err != nil {
			delete(files, pid)
			return err
		}
		if err := f.copyOwn(l, files[pid]); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return f.copyBlocks(files)
}

// copyOwn copies the pages that CRIU has to their new places.
func (f *folder) copyOwn(l *layout, to *os.File) error {
	name := criu.PagesImage(l.pagesID)
	s := &scatter{to: to, slots: l.slots}
	if f.has(name) {
		if err := f.checkpoint.WriteFile(name, counted{s, f.ctx, &f.meter}); err != nil {
			return explained(err)
		}
	}
	return s.whole(name)
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

// copyBlocks copies the pages of all blocks to their places.
func (f *folder) copyBlocks(files map[int]*os.File) error {
	group, ctx := errgroup.WithContext(f.ctx)
	var next atomic.Int64
	for range max(f.options.Workers, 1) {
		group.Go(func() error {
			var buffer image.Buffer
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= f.checkpoint.Blocks() {
					return nil
				}
				if err := f.copyBlock(i, &buffer, files); err != nil {
					return explained(err)
				}
			}
			return context.Cause(ctx)
		})
	}
	return group.Wait()
}

// copyBlock reads a block if any page of it is wanted here.
func (f *folder) copyBlock(i int, buffer *image.Buffer, files map[int]*os.File) error {
	var data []byte
	for _, piece := range f.checkpoint.Block(i).Pieces {
		err := f.layouts[piece.PID].each(piece.Addr, uint64(piece.Pages), func(s slot, skip uint64) (err error) {
			if s.from != fromBlocks {
				return nil
			}
			if data == nil {
				if data, err = f.checkpoint.ReadBlock(i, buffer); err != nil {
					return err
				}
			}
			from := (uint64(piece.First) + skip) * pageSize
			f.meter.add(int64(s.Pages * pageSize))
			_, err = files[piece.PID].WriteAt(data[from:from+s.Pages*pageSize], s.at)
			return err
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
