//go:build linux && (amd64 || arm64)

// Package pager puts the memory of a checkpoint into the processes that CRIU
// restores.
//
// CRIU restores a tree with lazy pages: it leaves the memory out, arms it with
// a userfaultfd for each process, and hands those to whoever listens on
// lazy-pages.socket in its work directory. That is Listen. From then on the
// pager serves faults, because a restore touches some of that memory itself.
// Fill puts everything in place: of a stopped tree before it runs (eager), or
// behind the back of a running one (lazy).
//
// Words: a *task* is an address space with its userfaultfd: a process that CRIU
// restored, or a child that such a process forked since. The *origin* of a task
// is the process of the checkpoint whose memory it started with. A page has a
// *source*, its address in the checkpoint, and a *place*, its address in the
// task; they are the same until the program moves its memory (layout.go). A
// *block* is the checkpoint's unit of reading.
//
// # Changes under the pager's hands
//
// A running program unmaps, moves and drops memory and forks while its pages
// are still coming in. The kernel tells of each change by an event and makes
// the thread that changes something wait until it was read. Two rules keep old
// content out of where it no longer belongs:
//
//   - Looking up the place of a page and copying it there happen under the
//     task's lock, held for reading; events are read *and* applied under the
//     same lock, held for writing. So no copy is under way while the thread
//     that, say, drops memory is let go on.
//   - From the start of a change until its event was read the kernel refuses
//     copies (EAGAIN). So a change that has happened but is not known yet does
//     no harm: give up the lock, read events, look up again.
//
// A child has, through copy on write, all pages that its parent had when it
// forked. What the parent lacked then the child has to get by itself: a block
// counts as done only if no task has joined while it was being copied.
//
// What the kernel does not give: an order among changes that several threads
// make at the same instant. layout.go sorts out what can be. A fork at the same
// instant as another thread's madvise, mremap or munmap can't be: the child may
// get that one range as it was a moment later. Nor does it tell of MADV_WIPEONFORK:
// the flags of the parent's memory are read at each fork. Of a child that forks
// itself while the memory is not complete the pid is not known, so memory that
// it has given the flag comes to its children as if it had not.
//
// # Failure
//
// A block that does not verify is never put anywhere: whoever needs it sleeps
// until it is killed, and Options.OnError is told. Closing a userfaultfd early
// would let the kernel hand out zero pages, so Close of an incomplete pager is
// for after the tree was killed.
//
// All methods may be called from several goroutines, Fill once at a time.
package pager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/image/families"
	"stasis/internal/image/reader"
)

// SocketName is where CRIU expects the pager, in its work directory.
const SocketName = "lazy-pages.socket"

const pageSize = image.PageSize

// Source is a checkpoint's memory.
type Source interface {
	Blocks() int
	// Pieces appends a block's pieces to list.
	Pieces(i int, list []image.Piece) []image.Piece
	// Bytes is what the pieces of a block have in all.
	Bytes(i int) int64
	// ReadBlock returns verified pages, valid until b is used again.
	ReadBlock(i int, b *reader.Buffer) ([]byte, error)
	Find(pid int, addr uint64) (block int, page uint32, kind image.Kind)
	PIDs() []int
	Ranges(pid int) []image.Range
}

var (
	_ Source = (*reader.Checkpoint)(nil)
	_ Source = (*families.Families)(nil)
)

// Options of a Pager. The zero value is an eager one.
type Options struct {
	// Workers is how many goroutines copy at once; 0 means one for each CPU.
	Workers int
	// Lazy says that the tree runs during Fill. One worker fewer then, for the
	// program's sake, and no short cut that needs a stopped tree.
	Lazy bool
	// OnError is told, once, of the first thing that keeps the memory from
	// becoming complete. The tree must be killed then. It runs in the pager's
	// goroutine and must not call Close.
	OnError func(error)
	// OnProgress is told of Fill's progress in bytes, one call at a time.
	OnProgress func(done, total int64)
	// OnDescriptor is given each userfaultfd before it is served, those of
	// forked children too, so that a second process can hold a copy. The
	// descriptor stays the pager's.
	OnDescriptor func(fd int) error
	// OnComplete is told when all memory is in place, while tasks are served
	// still. Whoever holds copies of the descriptors drops them then: the last
	// copy's end lets the kernel serve the memory again. No descriptor comes after.
	OnComplete func()
	// HostPID translates a pid of the checkpoint into one of this pid
	// namespace, 0 if there is none. Nil means that they are the same.
	HostPID func(pid int) int
}

// Pager serves one restore.
type Pager struct {
	src      Source // nil until ready, and where it could not be read
	o        Options
	faults   queue
	ready    chan struct{} // closed when src is there, or will never be
	arrived  chan struct{} // closed when every process with memory is here
	received chan struct{} // closed when no more tasks come from CRIU
	stop     chan struct{} // closed by Close
	running  sync.WaitGroup
	listener *net.UnixListener
	dir      int // descriptor of the work directory, -1 once closed

	mu     sync.Mutex
	moved  *sync.Cond // of mu: a block became free, done or bad
	conn   *net.UnixConn
	tasks  []*task      // those that have not ended
	joined int          // how many tasks there have ever been
	pids   []int        // what CRIU sent
	awaits map[int]bool // processes with memory that it has not sent yet
	err    error
	closed bool
	blocks blockTable

	filling bool                  // Fill has begun
	filled  bool                  // all memory is in place
	touched map[int][]image.Range // what was put in place before that, by process of the checkpoint

	report sync.Mutex // held while OnProgress runs
}

// Listen starts to serve the restore whose CRIU works in dir. It replaces a
// socket that a killed Stasis left there. The caller closes the pager.
func Listen(dir string, src Source, o Options) (*Pager, error) {
	return ListenEarly(dir, func() (Source, error) { return src, nil }, o)
}

// ListenEarly is Listen before the checkpoint's memory is known: CRIU can work
// until it touches some. Where load fails the pager fails. Load is called from a
// goroutine of the pager's, for which Close waits.
func ListenEarly(dir string, load func() (Source, error), o Options) (*Pager, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.NumCPU()
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open CRIU's work directory %s: %w", dir, err)
	}
	l, err := listen(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("cannot listen on %s: %w: is the directory writable?", filepath.Join(dir, SocketName), err)
	}
	p := &Pager{
		o: o, listener: l, dir: fd, awaits: map[int]bool{},
		ready: make(chan struct{}), arrived: make(chan struct{}), received: make(chan struct{}), stop: make(chan struct{}),
	}
	p.moved = sync.NewCond(&p.mu)
	p.faults.init()
	p.running.Go(func() { p.prepare(load) })
	p.running.Go(p.accept)
	for range o.Workers {
		p.running.Go(p.serveFaults)
	}
	return p, nil
}

// prepare makes ready what the first task needs.
func (p *Pager) prepare(load func() (Source, error)) {
	defer close(p.ready)
	src, err := load()
	if err != nil {
		p.fail(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.src = src
	p.blocks.init(src)
	for _, pid := range src.PIDs() {
		if len(src.Ranges(pid)) > 0 {
			p.awaits[pid] = true
		}
	}
	if len(p.awaits) == 0 {
		close(p.arrived)
	}
}

// Ready waits until faults can be answered. Nobody should let the tree run
// before.
func (p *Pager) Ready(ctx context.Context) error {
	select {
	case <-p.ready:
		return p.Err()
	case <-ctx.Done():
		return fmt.Errorf("cannot wait for the checkpoint's index: %w", context.Cause(ctx))
	case <-p.stop:
		return errClosed
	}
}

// listen binds the socket by way of the directory's descriptor: a socket's
// path has room for 107 bytes only, a directory's for more.
func listen(dir int) (*net.UnixListener, error) {
	if err := unix.Unlinkat(dir, SocketName, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, SocketName), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// Tasks lists the processes that CRIU has handed over so far, as it numbers them.
func (p *Pager) Tasks() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.pids)
}

// Err returns the first thing that keeps the memory from becoming complete: the
// tree must be killed. Nil while all is well.
func (p *Pager) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Progress says how many bytes of how many Fill has put in place.
func (p *Pager) Progress() (done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.blocks.done, p.blocks.total
}

// Touched lists the pages, by process of the checkpoint, that were put in place
// before Fill began because the restore itself asked for one of them. It may
// have written there: they need not be as the checkpoint has them.
func (p *Pager) Touched() map[int][]image.Range {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.touched
}

// noteTouched remembers the block of an early fault, or its page where there is
// no block.
func (p *Pager) noteTouched(f fault, block int, kind image.Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.filling {
		return
	}
	if p.touched == nil {
		p.touched = make(map[int][]image.Range)
	}
	if kind != image.Data {
		p.touched[f.t.origin] = append(p.touched[f.t.origin], image.Range{Start: f.addr, End: f.addr + blankRun})
		return
	}
	for _, piece := range p.src.Pieces(block, nil) {
		p.touched[piece.PID] = append(p.touched[piece.PID], image.Range{Start: piece.Addr, End: piece.Addr + uint64(piece.Pages)*pageSize})
	}
}

// Close stops serving and closes all userfaultfds. Unless Fill has succeeded,
// kill the tree before: it would go on with zeros for memory.
func (p *Pager) Close() error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.stop)
	}
	conn, dir := p.conn, p.dir
	p.dir = -1
	p.moved.Broadcast()
	p.mu.Unlock()

	err := p.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	if conn != nil {
		_ = conn.Close()
	}
	p.endAll()
	p.faults.close()
	p.running.Wait()
	if dir >= 0 {
		_ = unix.Unlinkat(dir, SocketName, 0)
		_ = unix.Close(dir)
	}
	return err
}

// endAll closes all userfaultfds.
func (p *Pager) endAll() {
	for _, t := range p.current() {
		p.end(t)
	}
}

// current lists the tasks that have not ended.
func (p *Pager) current() []*task {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.tasks)
}

// fail notes what keeps the memory from becoming complete.
func (p *Pager) fail(err error) {
	p.mu.Lock()
	first := p.err == nil && !p.closed
	if first {
		p.err = err
	}
	p.moved.Broadcast()
	p.mu.Unlock()
	if first && p.o.OnError != nil {
		p.o.OnError(err)
	}
}

// stopping reports whether Close was called.
func (p *Pager) stopping() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}
