package pageserver

import (
	"bytes"
	"errors"
	"io"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
)

// firstPages is the number of the first image of pages, as CRIU's own server counts: what the sender writes itself has lower ones.
const firstPages = 0x10001

// shared takes one segment of shared memory. Its pages become CRIU's image pages-K.img, which is stored while they come.
type shared struct {
	w       *writer.Writer
	segment uint64
	number  uint32 // K
	runs    []criu.PageRun
	content *upload
	parent  *criuPages // nil: it has none
	buf     []byte
}

var _ sink = (*shared)(nil)

// newShared begins a segment. The parent may be nil.
func newShared(w *writer.Writer, segment uint64, number uint32, parent *reader.Checkpoint) (*shared, error) {
	s := &shared{w: w, segment: segment, number: number, buf: make([]byte, image.MaxBlock)}
	if parent != nil {
		var err error
		if s.parent, err = openPages(parent, sharedName(segment)); err != nil {
			return nil, err
		}
	}
	s.content = newUpload(w, criu.PagesImage(number))
	return s, nil
}

func (s *shared) pages(r image.Range, c *client) error {
	for left := r.Len(); left > 0; {
		part := s.buf[:min(left, uint64(len(s.buf)))]
		if err := c.content(part); err != nil {
			return err
		}
		if _, err := s.content.Write(part); err != nil {
			return err
		}
		left -= uint64(len(part))
	}
	s.note(r)
	return nil
}

// hole copies what the parent has, so that the image is whole. Equal pieces become references all the same.
func (s *shared) hole(r image.Range) error {
	if s.parent == nil {
		return missingHole(r)
	}
	if err := s.parent.copyTo(s.content, r, s.buf); err != nil {
		return err
	}
	s.note(r)
	return nil
}

func (s *shared) note(r image.Range) {
	pages := r.Len() / image.PageSize
	if n := len(s.runs); n > 0 && s.runs[n-1].End() == r.Start {
		s.runs[n-1].Pages += pages
		return
	}
	s.runs = append(s.runs, criu.PageRun{Start: r.Start, Pages: pages, Flags: criu.PagePresent})
}

func (s *shared) end() error {
	if err := s.content.end(nil); err != nil {
		return err
	}
	text, err := criu.EncodePagemap(s.number, s.runs)
	if err != nil {
		return err
	}
	return s.w.PutFile(sharedName(s.segment), bytes.NewReader(text))
}

func (s *shared) abort() {
	_ = s.content.end(errors.New("the segment did not come whole")) // what is wrong is known already
}

// upload stores an image while it is made.
type upload struct {
	to   *io.PipeWriter
	done chan struct{}
	err  error // of PutFile, when done is closed
}

func newUpload(w *writer.Writer, name string) *upload {
	r, to := io.Pipe()
	u := &upload{to: to, done: make(chan struct{})}
	go func() {
		defer close(u.done)
		u.err = w.PutFile(name, r)
		r.CloseWithError(u.err) // so that Write says why
	}()
	return u
}

func (u *upload) Write(p []byte) (int, error) { return u.to.Write(p) }

// end ends the image, or gives it up for that reason, and waits until it is stored.
func (u *upload) end(why error) error {
	u.to.CloseWithError(why) // nil: the end
	<-u.done
	return u.err
}
