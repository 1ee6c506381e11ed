package pageserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"time"

	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
)

// maxSegments bounds the segments of shared memory, each of which is two images of the checkpoint.
const maxSegments = 1 << 13

// maxProcesses bounds the processes of a dump: what is noted of each stays in memory, also of those without any.
const maxProcesses = 1 << 16

// ReceiveOptions say how memory is received.
type ReceiveOptions struct {
	ServerOptions
	// Writer is where memory goes; Receive ends it by Finish or Abort.
	Writer *writer.Writer
	// Parent is what the Writer was given as its parent, or nil. The caller closes it afterwards.
	Parent *reader.Checkpoint
	// Announce tells the sender that there is a parent, so that it can leave to it what did not change. It takes one that has
	// the parent's images itself (--prev-images-dir) and a kernel with soft-dirty tracking; the dump of any other CRIU fails at
	// that answer. Without it the sender sends everything, and what is as in the parent is not stored again.
	Announce bool
	// Stasis and Name go to the manifest.
	Stasis, Name string
}

// Received sums up what came.
type Received struct {
	Peer     string          // address of the sender
	Manifest *image.Manifest // of the checkpoint
	Segments int             // of shared memory
	Pages    int64           // that were sent
	Holes    int64           // pages of the parent
	Notes    []string        // what went another way than was asked for
	// Unheard: the checkpoint is there, but the sender was gone before it was told. Its dump has failed, then.
	Unheard error
}

// Receive waits for one sender, takes its memory, and publishes the checkpoint before it tells the sender that all is safe. It
// closes l. Whatever fails leaves no checkpoint; the sender's dump then fails, and the processes run on there.
func Receive(ctx context.Context, l net.Listener, o ReceiveOptions) (_ *Received, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Writer.Abort())
		}
	}()
	c, first, err := o.accept(ctx, l, beginsReceiving)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	r := newReceiver(c, &o)
	err = r.run(first)
	if err != nil {
		r.abort()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("receive memory from %s: %w", c.name(), err)
	}
	return r.sum, nil
}

// beginsReceiving says whether a session of a sender begins so.
func beginsReceiving(h head) error {
	switch h.cmd {
	case cmdOpen, cmdOpenAnswer, cmdParent:
		_, err := decodePagemap(h.id)
		return err
	case cmdClose, cmdForceClose: // a dump that failed before it came to memory
		return nil
	case cmdGet:
		return refuse("it asks for pages, and this server takes them: start it with --lazy-pages")
	}
	return refuse("command %d comes before a pagemap is opened", h.cmd)
}

// sink takes one pagemap. It ends in end or abort.
type sink interface {
	pages(r image.Range, c *client) error // they follow
	hole(r image.Range) error
	end() error
	abort()
}

// receiver is the state of a session.
type receiver struct {
	*ReceiveOptions
	c       *client
	told    *reader.Checkpoint // the parent that the sender knows of, or nil
	pack    *packer
	packed  bool // pack has ended
	begun   time.Time
	sum     *Received
	present map[int][]image.Range
	holes   map[int][]image.Range // of what is present, that is the parent's by the sender's word
	seen    map[pagemapID]bool
	root    int // the process that came first: CRIU goes from parents to children

	// the open pagemap
	raw     uint64 // as messages name it
	name    pagemapID
	current sink   // nil: none is open
	behind  uint64 // end of its last run
}

func newReceiver(c *client, o *ReceiveOptions) *receiver {
	r := &receiver{
		ReceiveOptions: o, c: c, pack: newPacker(o.Writer, min(runtime.GOMAXPROCS(0), 16)), begun: time.Now(),
		sum: &Received{Peer: c.name()}, present: map[int][]image.Range{}, holes: map[int][]image.Range{}, seen: map[pagemapID]bool{},
	}
	if o.Announce {
		r.told = o.Parent
	}
	return r
}

// run serves the session that begins with that message, to its end.
func (r *receiver) run(h head) error {
	for h.cmd != cmdClose && h.cmd != cmdForceClose {
		if err := r.handle(h); err != nil {
			return err
		}
		var err error
		if h, err = r.c.nextHead(); err != nil {
			return err
		}
	}
	if err := r.finish(); err != nil {
		// So that CRIU says that the server had a reason. That it can't be told changes nothing.
		if r.c.sendStatus(-1) == nil && h.cmd == cmdClose {
			r.c.waitForEnd()
		}
		return err
	}
	r.sum.Unheard = r.c.sendStatus(0)
	if h.cmd == cmdClose {
		r.c.waitForEnd()
	}
	return nil
}

func (r *receiver) handle(h head) error {
	switch h.cmd {
	case cmdOpen, cmdOpenAnswer:
		has, err := r.open(h)
		if err != nil || h.cmd == cmdOpen {
			return err
		}
		return r.c.send([]byte{has})
	case cmdParent:
		id, err := decodePagemap(h.id)
		if err != nil {
			return err
		}
		return r.c.sendStatus(int32(has(r.told, id)))
	case cmdAdd, cmdHole, cmdRun:
		return r.takeRun(h)
	}
	return refuse("command %d has no place here", h.cmd)
}

func has(parent *reader.Checkpoint, id pagemapID) byte {
	if parentHas(parent, id) {
		return 1
	}
	return 0
}

// open begins a pagemap and says whether the parent has it.
func (r *receiver) open(h head) (byte, error) {
	id, err := decodePagemap(h.id)
	if err != nil {
		return 0, err
	}
	if err := r.endCurrent(); err != nil {
		return 0, err
	}
	if r.seen[id] {
		return 0, refuse("%v is sent twice", id)
	}
	r.seen[id] = true
	if !id.shared {
		if len(r.present) == maxProcesses {
			return 0, refuse("memory of more than %d processes", maxProcesses)
		}
		p := &private{pid: int(id.number), pack: r.pack}
		if r.told != nil {
			p.inOwn = r.told.Ranges(p.pid)
		}
		if r.present[p.pid] = nil; r.root == 0 {
			r.root = p.pid
		}
		r.current = p
	} else {
		if r.sum.Segments++; r.sum.Segments > maxSegments {
			return 0, refuse("more than %d segments of shared memory", maxSegments)
		}
		s, err := newShared(r.Writer, id.number, uint32(firstPages+r.sum.Segments-1), r.told)
		if err != nil {
			return 0, err
		}
		r.current = s
	}
	r.raw, r.name, r.behind = h.id, id, 0
	return has(r.told, id), nil
}

// endCurrent ends the open pagemap, if there is one.
func (r *receiver) endCurrent() error {
	s := r.current
	if s == nil {
		return nil
	}
	r.current = nil
	if err := s.end(); err != nil {
		return err
	}
	if p, ok := s.(*private); ok {
		r.present[p.pid], r.holes[p.pid] = p.present, p.holes
	}
	return nil
}

// takeRun takes one run of pages, or one hole.
func (r *receiver) takeRun(h head) error {
	if r.current == nil || h.id != r.raw {
		return refuse("pages of a pagemap that is not open")
	}
	kind, err := h.kind()
	if err != nil {
		return fmt.Errorf("%v: %w", r.name, err)
	}
	at, err := h.rng()
	if err != nil {
		return fmt.Errorf("%v: %w", r.name, err)
	}
	if at.Start < r.behind {
		return fmt.Errorf("%v: %w", r.name, refuse("the pages at %#x come behind those before %#x", at.Start, r.behind))
	}
	if at.Len() == 0 {
		return nil
	}
	r.behind = at.End
	if kind == runHole {
		r.sum.Holes += int64(h.pages)
		err = r.current.hole(at)
	} else {
		r.sum.Pages += int64(h.pages)
		err = r.current.pages(at, r.c)
	}
	if err != nil {
		return fmt.Errorf("%v: %w", r.name, err)
	}
	return nil
}

// finish publishes the checkpoint.
func (r *receiver) finish() error {
	if len(r.seen) == 0 {
		return errors.New("no memory was sent: its dump failed before it came to that")
	}
	if err := r.endCurrent(); err != nil {
		return err
	}
	r.packed = true
	if err := r.pack.end(); err != nil {
		return err
	}
	if err := r.checkHoles(); err != nil {
		return err
	}
	m := &image.Manifest{
		Stasis: r.Stasis, Name: r.Name, Kind: image.KindPreDump, Created: r.begun, Engine: "criu", Processes: []image.Process{},
	}
	if r.Parent != nil {
		m.Depth = r.Parent.Manifest().Depth + 1
	}
	m.RootPID = r.root
	for pid := range r.present {
		m.Processes = append(m.Processes, image.Process{PID: pid})
	}
	slices.SortFunc(m.Processes, func(a, b image.Process) int { return cmp.Compare(a.PID, b.PID) })
	took := time.Since(r.begun).Microseconds()
	m.Figures.DumpUS = took
	m.Figures.Rounds = []image.Round{{Pages: r.sum.Pages, Bytes: r.sum.Pages * image.PageSize, US: took}}
	r.sum.Manifest = m
	if blocks, why := r.Writer.Unread(); blocks > 0 {
		r.sum.Notes = append(r.sum.Notes, fmt.Sprintf(
			"the parent is damaged (%d of its blocks cannot be read, the first: %v): what was sent for them is stored whole; run stasis verify on the parent", blocks, why))
	}
	return r.Writer.Finish(r.present, m)
}

// checkHoles sees that the sender has left no page to the parent that cannot be read there. A pre-dump may lack pages, and would just
// lack these.
func (r *receiver) checkHoles() error {
	for pid, holes := range r.holes {
		lost, _ := r.Writer.Lost(pid, 0)
		for _, l := range lost {
			for _, h := range holes {
				if l.Start < h.End && h.Start < l.End {
					_, why := r.Writer.Unread()
					return fmt.Errorf("the sender has left memory at %#x of process %d to the parent, and it cannot be read there: %w: %w: dump again without a parent",
						max(l.Start, h.Start), pid, image.ErrLost, why)
				}
			}
		}
	}
	return nil
}

// abort ends all that runs beside the session, so that the Writer can be aborted.
func (r *receiver) abort() {
	if r.current != nil {
		r.current.abort()
		r.current = nil
	}
	if !r.packed {
		r.packed = true
		_ = r.pack.end() // an error is what led here, or comes from it
	}
}
