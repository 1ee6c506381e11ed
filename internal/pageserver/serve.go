package pageserver

import (
	"context"
	"errors"
	"fmt"
	"net"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// maxAnswer bounds the answer to one request, in pages. CRIU asks for at most 1024 pages, and takes fewer.
const maxAnswer = 1024

// ServeOptions say which pages are served.
type ServeOptions struct {
	ServerOptions
	Checkpoint *reader.Checkpoint // the caller closes it afterwards
}

// Served sums up what was asked for.
type Served struct {
	Peer     string // address of the client
	Requests int64
	Pages    int64 // that were sent
}

// Serve waits for one client that restores lazily, and gives it the pages that it asks for, until it leaves. It closes l.
func Serve(ctx context.Context, l net.Listener, o ServeOptions) (*Served, error) {
	c, h, err := o.accept(ctx, l, beginsAsking)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	s := &asker{c: c, pages: pageReader{from: o.Checkpoint, kept: map[int]*criuPages{}}, sum: &Served{Peer: c.name()}}
	if err := s.run(h); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("serve pages to %s: %w", c.name(), err)
	}
	return s.sum, nil
}

// beginsAsking says whether a session of a lazy restore begins so.
func beginsAsking(h head) error {
	switch h.cmd {
	case cmdGet, cmdClose, cmdForceClose:
		return nil
	}
	return refuse("it sends memory, and this server gives it: start it without --lazy-pages")
}

// asker is the state of a session.
type asker struct {
	c     *client
	pages pageReader
	sum   *Served
	out   []byte
}

func (s *asker) run(h head) error {
	for h.cmd == cmdGet {
		if err := s.answer(h); err != nil {
			return err
		}
		var err error
		if h, err = s.c.nextHead(); err != nil {
			if errors.Is(err, errLeft) && s.sum.Requests > 0 {
				return nil // CRIU's client may leave without a word when it has everything
			}
			return err
		}
	}
	if h.cmd != cmdClose && h.cmd != cmdForceClose {
		return refuse("command %d has no place here", h.cmd)
	}
	if err := s.c.sendStatus(0); err != nil {
		return err
	}
	if h.cmd == cmdClose {
		s.c.waitForEnd()
	}
	return nil
}

// answer answers a request. All is read and checked before the first byte is sent.
func (s *asker) answer(h head) error {
	at, err := h.rng()
	if err != nil {
		return err
	}
	if h.id == 0 || h.id > maxPID {
		return refuse("%d is no process id", h.id)
	}
	at.End = min(at.End, at.Start+maxAnswer*image.PageSize)
	s.out = append(s.out[:0], make([]byte, longLayout)...)[:s.c.layout]
	n := len(s.out)
	if s.out, err = s.pages.read(int(h.id), at, s.out); err != nil {
		return err
	}
	h.pages = uint64(len(s.out)-n) / image.PageSize
	if h.pages == 0 {
		return fmt.Errorf("process %d has no page at %#x in the checkpoint: serve the checkpoint that is restored", h.id, h.addr)
	}
	h.cmd, h.flags = cmdRun, flagPresent
	copy(s.out, h.encode(s.c.layout))
	s.sum.Requests++
	s.sum.Pages += int64(h.pages)
	return s.c.send(s.out)
}

const maxPID = 1<<31 - 1

// pageReader reads runs of pages. It keeps the last block, because a client that fills a process reads on where it was.
type pageReader struct {
	from  *reader.Checkpoint
	kept  map[int]*criuPages // by process, those that were asked for: what CRIU kept of it, and has in its own images
	buf   reader.Buffer
	block int    // number of the last block and 1; 0: none
	data  []byte // of it
}

// read appends the pages of a range to out, as many as there are in a row.
func (p *pageReader) read(pid int, at image.Range, out []byte) ([]byte, error) {
	own, known := p.kept[pid]
	if !known {
		var err error
		if own, err = openPages(p.from, criu.PagemapImage(pid)); err != nil {
			return out, err
		}
		p.kept[pid] = own
	}
	for ; at.Start < at.End; at.Start += image.PageSize {
		n := len(out)
		out = append(out, make([]byte, image.PageSize)...)
		there, err := p.readPage(own, pid, at.Start, out[n:])
		if err != nil || !there {
			return out[:n], err
		}
	}
	return out, nil
}

// readPage reads one page and says whether it is there. Where both have it, CRIU's own is the one that counts. to is all zeros.
func (p *pageReader) readPage(own *criuPages, pid int, addr uint64, to []byte) (bool, error) {
	if run, ok := own.find(addr); ok {
		return true, own.read(run, addr, to)
	}
	return p.readBlock(pid, addr, to)
}

// readBlock reads one page from the blocks, and says whether it is there. to is all zeros.
func (p *pageReader) readBlock(pid int, addr uint64, to []byte) (bool, error) {
	block, page, kind := p.from.Find(pid, addr)
	if kind != image.Data {
		return kind == image.Zero, nil
	}
	if p.block != block+1 {
		p.block = 0
		data, err := p.from.ReadBlock(block, &p.buf)
		if err != nil {
			return false, err
		}
		p.block, p.data = block+1, data
	}
	from := int(page) * image.PageSize
	if from+image.PageSize > len(p.data) {
		return false, fmt.Errorf("page %#x of process %d lies outside of its block", addr, pid)
	}
	copy(to, p.data[from:])
	return true, nil
}
