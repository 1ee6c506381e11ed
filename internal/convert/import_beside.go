package convert

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// A page server of Stasis writes the memory that CRIU sends into a checkpoint: that of processes into blocks, by their pids, and
// shared memory as CRIU's images. CRIU's other images are put beside it.

// block is a block of a checkpoint.
type block struct {
	from   *reader.Checkpoint
	number int
}

// besideReader is a buffer with the block that was read into it last: neighbours mostly want the same one.
type besideReader struct {
	buffer reader.Buffer
	from   *reader.Checkpoint
	number int
	data   []byte
}

var readers = sync.Pool{New: func() any { return new(besideReader) }}

func (b block) readPages(p []byte, at int64) error {
	r, _ := readers.Get().(*besideReader)
	defer readers.Put(r)
	if r.from != b.from || r.number != b.number {
		data, err := b.from.ReadBlock(b.number, &r.buffer)
		if err != nil {
			r.from = nil
			return err
		}
		r.from, r.number, r.data = b.from, b.number, data
	}
	copy(p, r.data[at:at+int64(len(p))])
	return nil
}

// besideStretches lists the pages that a checkpoint has of a process, in order.
func besideStretches(c *reader.Checkpoint, pid int) []stretch {
	var list []stretch
	for _, r := range c.Ranges(pid) {
		for at := r.Start; at < r.End; at += pageSize {
			number, page, kind := c.Find(pid, at)
			next := stretch{start: at, pages: 1, in: zeros{}}
			if kind == image.Data {
				next.in, next.at = block{c, number}, int64(page)*pageSize
			}
			if n := len(list); n > 0 && list[n-1].goesOn(next) {
				list[n-1].pages++
				continue
			}
			list = append(list, next)
		}
	}
	return list
}

func (s stretch) goesOn(next stretch) bool {
	_, zero := s.in.(zeros)
	return s.end() == next.start && s.in == next.in && (zero || s.at+s.bytes() == next.at)
}

// putBeside stores the shared memory that a page server got.
func (i *importing) putBeside() error {
	if i.beside == nil {
		return nil
	}
	for _, f := range i.beside.Files() {
		if !strings.HasPrefix(f.Name, shmemPrefix) {
			continue
		}
		if slices.ContainsFunc(i.plans, func(p *plan) bool { return p.image == f.Name }) {
			return fmt.Errorf("%s is there twice: in the folder, and in the checkpoint in it: remove one of them", f.Name)
		}
		var text bytes.Buffer
		if err := i.beside.WriteFile(f.Name, &text); err != nil {
			return err
		}
		id, _, err := criu.DecodePagemap(text.Bytes())
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		if err := i.writer.PutFile(f.Name, &text); err != nil {
			return err
		}
		if err := i.copyBeside(criu.PagesImage(id)); err != nil {
			return err
		}
	}
	return nil
}

func (i *importing) copyBeside(name string) error {
	from, to := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = to.CloseWithError(i.beside.WriteFile(name, to)) // the other side gets the error
	}()
	err := i.writer.PutFile(name, from)
	_ = from.CloseWithError(err) // lets this side end
	<-done
	return err
}
