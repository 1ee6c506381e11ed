// Package capture copies pages out of processes, with several workers, while
// the processes run or while they are frozen.
//
// Words: a batch is up to [image.MaxBlock] bytes of pages of one process, read
// with one system call and handed on as one block.
//
// A page of a running process may be torn, or gone, by the time it is read.
// Both are fine: a page that is written after it was write-protected is copied
// again by the next round, and the pages that a checkpoint needs are only known
// at the freeze. In a frozen process a page that cannot be read is an error.
//
// [Copier.Add] belongs to one goroutine; the sink is called from all workers.
package capture

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
)

// Sink takes a block. It is called from several goroutines at once; the block
// and its data are only valid until it returns.
type Sink func(image.PageBlock) error

// Options says how a Copier works.
type Options struct {
	Workers int  // 0: one for each CPU
	Frozen  bool // the processes are stopped: a page that cannot be read is an error
	Nice    int  // added to the niceness of the workers, for the sake of the program that runs meanwhile

	// Label names the process in the block; nil: by its pid. Checkpoints
	// count pids as the process itself sees them.
	Label func(pid int) int
}

// Copier copies the pages it is given.
type Copier struct {
	opts    Options
	sink    Sink
	group   *errgroup.Group
	ctx     context.Context
	batches chan batch
	open    batch // being filled by Add
	copied  atomic.Uint64

	mu      sync.Mutex
	dropped []Dropped // guarded by mu
}

// batch is a list of page runs of one process, at most image.MaxBlock bytes.
type batch struct {
	pid     int
	shared  bool
	extents []image.Extent
	bytes   int
}

// New starts the workers. The caller calls Wait, also after an error.
func New(ctx context.Context, sink Sink, opts Options) *Copier {
	if opts.Workers <= 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	if opts.Label == nil {
		opts.Label = func(pid int) int { return pid }
	}
	group, ctx := errgroup.WithContext(ctx)
	c := &Copier{opts: opts, sink: sink, group: group, ctx: ctx, batches: make(chan batch, 2*opts.Workers)}
	for range opts.Workers {
		group.Go(c.work)
	}
	return c
}

// Add gives a range of pages to copy; it waits while the workers are busy. An
// error of a worker is reported by Wait.
//
// Pages that the process may share with others since fork are read in a slower
// way: the fast one would give the process a copy of its own of each.
func (c *Copier) Add(pid int, r proc.Range, shared bool) {
	for at := r.Start; at < r.End; {
		if c.open.bytes > 0 && (c.open.pid != pid || c.open.shared != shared) {
			c.flush()
		}
		n := min(r.End-at, uint64(image.MaxBlock-c.open.bytes))
		c.open.pid, c.open.shared = pid, shared
		c.open.extents = append(c.open.extents, image.Extent{Addr: at, Pages: uint32(n / proc.PageSize)})
		c.open.bytes += int(n)
		if c.open.bytes == image.MaxBlock {
			c.flush()
		}
		at += n
	}
}

func (c *Copier) flush() {
	if c.open.bytes == 0 {
		return
	}
	select {
	case c.batches <- c.open:
	case <-c.ctx.Done():
	}
	c.open = batch{}
}

// Dropped is a page of a running process that could not be read: it was gone
// for a moment, or is gone for good.
type Dropped struct {
	PID int
	proc.Range
}

// Dropped lists the pages that could not be read. It is called after Wait. Such
// a page may be back, and count as unchanged, though nobody has a copy of it.
func (c *Copier) Dropped() []Dropped { return c.dropped }

func (c *Copier) drop(pid int, pages []proc.Range) {
	if len(pages) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range pages {
		c.dropped = append(c.dropped, Dropped{pid, r})
	}
}

// Wait lets the workers finish what was added and returns the number of bytes
// copied.
func (c *Copier) Wait() (bytes uint64, err error) {
	c.flush()
	close(c.batches)
	err = c.group.Wait()
	return c.copied.Load(), err
}

func (c *Copier) work() error {
	buffer := make([]byte, image.MaxBlock)
	standBack(c.opts.Nice)
	var r reader
	defer r.close()
	for b := range c.batches {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		extents, data, err := r.read(b, buffer, c.opts.Frozen)
		if err != nil {
			return err
		}
		c.drop(b.pid, r.dropped)
		if len(data) == 0 {
			continue
		}
		if err := c.sink(image.PageBlock{PID: c.opts.Label(b.pid), Extents: extents, Data: data}); err != nil {
			return err
		}
		c.copied.Add(uint64(len(data)))
	}
	return nil
}

// standBack gives the goroutine a thread of its own that has so much less
// priority than the program. It is never unlocked: the thread ends with the
// goroutine, and nobody else inherits its niceness.
func standBack(nice int) {
	if nice <= 0 {
		return
	}
	runtime.LockOSThread()
	if now, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		// The system call, unlike the C library, gives 20 minus the niceness.
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 20-now+nice) // no harm if refused
	}
}
