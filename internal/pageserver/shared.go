package pageserver

import (
	"errors"
	"fmt"
	"io"

	"stasis/internal/image"
)

// firstPages is the number of the first image of pages, as CRIU's own server counts: what the sender writes itself has lower ones.
const firstPages = 0x10001

// shared takes one segment of shared memory: two of CRIU's images, which are stored while they come.
type shared struct {
	segment uint64
	entries mapWriter
	maps    *upload
	pageSet *upload
	parent  *sharedParent // nil: none
	buf     []byte
}

var _ sink = (*shared)(nil)

func newShared(w *image.Writer, segment uint64, number uint32, parent *image.Checkpoint) (*shared, error) {
	s := &shared{
		segment: segment, buf: make([]byte, image.MaxBlock),
		maps: newUpload(w, sharedName(segment)), pageSet: newUpload(w, pagesName(number)),
	}
	s.entries.to = s.maps
	if parentHas(parent, pagemapID{true, segment}) {
		s.parent = &sharedParent{checkpoint: parent, segment: segment}
	}
	if err := s.entries.begin(number); err != nil {
		s.abort()
		return nil, s.cause(err)
	}
	return s, nil
}

// cause finds out why a Write to an upload failed.
func (s *shared) cause(err error) error {
	if errors.Is(err, errUpload) {
		for _, u := range []*upload{s.maps, s.pageSet} {
			if why := u.end(nil); why != nil {
				return why
			}
		}
	}
	return err
}

func (s *shared) pages(r image.Range, c *client) error {
	for left := r.Len(); left > 0; {
		part := s.buf[:min(left, uint64(len(s.buf)))]
		if err := c.content(part); err != nil {
			return err
		}
		if _, err := s.pageSet.Write(part); err != nil {
			return s.cause(err)
		}
		left -= uint64(len(part))
	}
	if err := s.entries.add(r); err != nil {
		return s.cause(err)
	}
	return nil
}

// hole copies what the parent has, so that the images are whole. Equal pieces become references all the same.
func (s *shared) hole(r image.Range) error {
	if s.parent == nil {
		return missingHole(r)
	}
	if r.Len() == 0 {
		return nil
	}
	if err := s.parent.copyTo(s.pageSet, r, s.buf); err != nil {
		return s.cause(err)
	}
	if err := s.entries.add(r); err != nil {
		return s.cause(err)
	}
	return nil
}

func (s *shared) end() error {
	err := s.entries.flush()
	s.parent.end()
	return errors.Join(s.maps.end(err), s.pageSet.end(err))
}

func (s *shared) abort() {
	stop := errors.New("the segment did not come whole")
	s.parent.end()
	_ = errors.Join(s.maps.end(stop), s.pageSet.end(stop)) // what is wrong is known already
}

// errUpload says that an upload has failed; its end tells why.
var errUpload = errors.New("the image can't be stored")

// upload stores an image while it is made.
type upload struct {
	to   *io.PipeWriter
	done chan struct{}
	err  error // of PutFile, when done is closed
}

func newUpload(w *image.Writer, name string) *upload {
	r, to := io.Pipe()
	u := &upload{to: to, done: make(chan struct{})}
	go func() {
		defer close(u.done)
		u.err = w.PutFile(name, r)
		r.CloseWithError(errUpload)
	}()
	return u
}

func (u *upload) Write(p []byte) (int, error) { return u.to.Write(p) }

// end ends the image, or gives it up for that reason, and waits until it is stored. It may be called again.
func (u *upload) end(why error) error {
	u.to.CloseWithError(why) // nil: the end
	<-u.done
	return u.err
}

// sharedParent reads a segment of the parent, from front to back.
type sharedParent struct {
	checkpoint *image.Checkpoint
	segment    uint64

	entries *mapReader
	maps    *download
	pageSet *download
	at      image.Range // what pageSet is at; empty: read the next entry
	behind  uint64      // the end of what was read
}

// copyTo copies a range, all of which the parent must have, to w by way of buf.
func (p *sharedParent) copyTo(w io.Writer, r image.Range, buf []byte) error {
	if p.entries == nil {
		if err := p.open(); err != nil {
			return p.damaged(err)
		}
	}
	for r.Start < r.End {
		if p.at.Start == p.at.End {
			next, err := p.entries.next(p.behind)
			if errors.Is(err, io.EOF) {
				return missingHole(r)
			}
			if err != nil {
				return p.damaged(err)
			}
			p.at, p.behind = next, next.End
		}
		if r.Start < p.at.Start {
			return missingHole(r)
		}
		to, n := io.Discard, min(r.Start, p.at.End)-p.at.Start // what nobody wants any more
		if n == 0 {
			to, n = w, min(r.End, p.at.End)-r.Start
			r.Start += n
		}
		p.at.Start += n
		if err := p.copyPages(to, n, buf); err != nil {
			return err
		}
	}
	return nil
}

func (p *sharedParent) copyPages(to io.Writer, n uint64, buf []byte) error {
	for n > 0 {
		part := buf[:min(n, uint64(len(buf)))]
		if _, err := io.ReadFull(p.pageSet.from, part); err != nil {
			return p.damaged(err)
		}
		if _, err := to.Write(part); err != nil {
			return err
		}
		n -= uint64(len(part))
	}
	return nil
}

func (p *sharedParent) open() error {
	p.maps = newDownload(p.checkpoint, sharedName(p.segment))
	p.entries = &mapReader{from: p.maps.from}
	number, err := p.entries.begin()
	if err != nil {
		return err
	}
	p.pageSet = newDownload(p.checkpoint, pagesName(number))
	return nil
}

func (p *sharedParent) damaged(err error) error {
	return fmt.Errorf("read shared memory %d of the parent: %w", p.segment, err)
}

// end lets go of what is being read. It may be called of nothing, and again.
func (p *sharedParent) end() {
	if p != nil {
		p.maps.end()
		p.pageSet.end()
	}
}

// download reads an image of a checkpoint piece by piece.
type download struct {
	from *io.PipeReader
	done chan struct{}
}

func newDownload(c *image.Checkpoint, name string) *download {
	from, w := io.Pipe()
	d := &download{from: from, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		w.CloseWithError(c.WriteFile(name, w)) // nil: the end
	}()
	return d
}

// end waits until nothing is read any more, whatever is left.
func (d *download) end() {
	if d != nil {
		_ = d.from.Close()
		<-d.done
	}
}
