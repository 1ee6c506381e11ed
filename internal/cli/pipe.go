package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/store"
	"stasis/internal/workdir"
)

const (
	// pipeSize is asked for, to spare the reader and the writer of a pipe some turns. A machine may allow less.
	pipeSize = 1 << 20

	// drainLimit is how long a reader may take nothing from the pipe before the dump gives it up.
	drainLimit = 30 * time.Second
	// drainPause is how long to wait before looking again: nothing tells a writer that a pipe has become empty.
	drainPause = 2 * time.Millisecond

	// spool is more than fits into memory: what is received goes to a disk.
	spool = 1 << 40
)

// pipe is a checkpoint that is being written to standard output.
type pipe struct {
	store.Target
	ctx  context.Context
	file *os.File
	own  bool // file was opened here
	stop func() bool
}

// dumpToPipe starts a checkpoint in one stream. Cancelling the context ends also a write that the reader does not take.
func dumpToPipe(ctx context.Context, out *os.File) (*pipe, error) {
	p := &pipe{ctx: ctx, file: out, stop: func() bool { return true }}
	var st unix.Stat_t
	if err := unix.Fstat(int(out.Fd()), &st); err != nil {
		return nil, badInput("--dir -: standard output is not open: %w", err)
	}
	if isTerminal(int(out.Fd())) {
		return nil, badInput("--dir - writes the checkpoint to standard output, which is a terminal: send it to a program or a file, as in --dir - | ssh HOST stasis restore process --path -")
	}
	if st.Mode&unix.S_IFMT == unix.S_IFIFO {
		// An opening of our own: one that does not block is no business of those who share the other.
		if file, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", out.Fd()), os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			p.file, p.own = file, true
			_, _ = unix.FcntlInt(file.Fd(), unix.F_SETPIPE_SZ, pipeSize)
			p.stop = context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) })
		}
	}
	p.Target = store.NewStream(p.file)
	return p, nil
}

// Commit ends the stream and waits until its reader has taken all of it, because the process may be killed next.
func (p *pipe) Commit(manifest []byte) error {
	if err := p.Target.Commit(manifest); err != nil {
		return err
	}
	return taken(p.ctx, p.file, drainLimit)
}

func (p *pipe) Close() {
	p.stop()
	if p.own {
		p.file.Close()
	}
}

// taken waits until nothing of what was written is on its way any more: the reader has taken it, or a file has it on disk.
// The wait ends when the reader leaves, and when it takes nothing for as long as limit.
func taken(ctx context.Context, file *os.File, limit time.Duration) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	var question uint
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFBLK:
		if err := file.Sync(); err != nil {
			return fmt.Errorf("write the checkpoint to the disk: %w", err)
		}
		return nil
	case unix.S_IFIFO:
		question = unix.TIOCINQ // bytes in the pipe, whichever end asks: pipe(7)
	case unix.S_IFSOCK:
		question = unix.SIOCOUTQ // bytes that the peer has not confirmed: tcp(7), unix(7)
	default:
		return nil
	}
	return untilEmpty(ctx, int(file.Fd()), question, limit)
}

func untilEmpty(ctx context.Context, fd int, question uint, limit time.Duration) error {
	left, deadline := -1, time.Now().Add(limit)
	for {
		now, err := unix.IoctlGetInt(fd, question)
		if err != nil {
			return fmt.Errorf("see whether the checkpoint's stream was read: %w", err)
		}
		// It should stay until it sees the end of the stream, which is when this program ends.
		if readerGone(fd) {
			return errors.New("the program that reads the checkpoint's stream ended too early: look at its message")
		}
		if now == 0 {
			return nil
		}
		if now != left {
			left, deadline = now, time.Now().Add(limit)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the program that reads the checkpoint's stream has taken nothing for %v: see why it hangs, and dump again", limit)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(drainPause):
		}
	}
}

// readerGone says that nobody can read any more what was written.
func readerGone(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0 && poll[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
}

// received is a checkpoint that came through standard input.
type received struct {
	dir  string
	work *workdir.Dir
}

// receive stores a stream in a folder that lives until Close, beside the default checkpoints where that is possible.
func (a *app) receive(ctx context.Context) (*received, error) {
	if isTerminal(int(a.in.Fd())) {
		return nil, badInput("--path - reads the checkpoint from standard input, which is a terminal: send one in, as in stasis dump process PID --dir - | stasis restore process --path -")
	}
	work, err := workdir.New(filepath.Join(a.config.Checkpoint.Dir, "received"), spool)
	if err != nil {
		return nil, err
	}
	r := &received{dir: filepath.Join(work.Path(), "checkpoint"), work: work}
	target, err := store.CreateFolder(r.dir)
	if err == nil {
		err = a.receiveInto(ctx, a.in, target)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// receiveInto unpacks a stream from a file into a place for a checkpoint.
func (a *app) receiveInto(ctx context.Context, from *os.File, target store.Target) error {
	view := a.progress()
	defer view.Close()
	in, err := readerOf(ctx, from, view)
	if err != nil {
		return err
	}
	defer in.Close()
	return store.Receive(in, target)
}

func (r *received) Close() error {
	if err := r.work.Remove(); err != nil {
		return fmt.Errorf("remove the received checkpoint: %w", err)
	}
	return nil
}

// countingReader reads until the context ends, and shows how much. It may read a descriptor that blocks.
type countingReader struct {
	ctx   context.Context
	file  *os.File
	view  *progressView
	total int64

	wake, waker *os.File // a pipe that is closed when the context ends
	stop        func() bool
}

func readerOf(ctx context.Context, file *os.File, view *progressView) (*countingReader, error) {
	wake, waker, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	return &countingReader{
		ctx: ctx, file: file, view: view, wake: wake, waker: waker,
		stop: context.AfterFunc(ctx, func() { waker.Close() }),
	}, nil
}

func (r *countingReader) Read(p []byte) (int, error) {
	if err := r.await(); err != nil {
		return 0, err
	}
	n, err := r.file.Read(p)
	r.total += int64(n)
	r.view.show("receiving the checkpoint", r.total, 0)
	return n, err
}

// await waits until there is something to read.
func (r *countingReader) await() error {
	poll := []unix.PollFd{{Fd: int32(r.file.Fd()), Events: unix.POLLIN}, {Fd: int32(r.wake.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(poll, -1)
		if r.ctx.Err() != nil {
			return context.Cause(r.ctx)
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for standard input: %w", err)
		}
		return nil
	}
}

func (r *countingReader) Close() {
	if r.stop() {
		r.waker.Close()
	}
	r.wake.Close()
}
