package chain

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/families"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// CompactOptions say what Compact makes.
type CompactOptions struct {
	Options
	To       string      // folder of the new checkpoint; "": it takes the place of the old one
	Shards   int         // 0: as many as the old one has
	Codec    codec.Codec // nil: that of the old one
	Progress func(done, total int64)
}

// Compacted says what Compact made.
type Compacted struct {
	Manifest *image.Manifest
	Dir      string
	Report   *Report // of the removal of the old one, where the new one took its place
}

// Compact makes one checkpoint that needs no others of the one in dir and its ancestors. No process is needed for it. The new one
// has a new id in any case: the places of blocks are others, and two checkpoints with one id could be taken for each other.
//
// In place, the new checkpoint is written beside the old one and verified, the two change places in one step, and the old one is
// removed as by Remove: what others need of it stays, in a folder whose name begins with a dot. At every moment there is a whole
// checkpoint in dir.
func Compact(ctx context.Context, dir string, o CompactOptions) (*Compacted, error) {
	if o.To != "" {
		if realPath(absolute(o.To)) == realPath(absolute(dir)) {
			return nil, fmt.Errorf("cannot compact %s into its own folder: one %w there: name another, or none to put the new one in its place", dir, store.ErrExists)
		}
		l, err := LockShared(ctx, dir, o.Roots...)
		if err != nil {
			return nil, err
		}
		defer l.Unlock() //nolint:errcheck // closing a folder loses nothing
		m, err := rewrite(ctx, dir, o.To, &o)
		if err != nil {
			return nil, err
		}
		return &Compacted{Manifest: m, Dir: absolute(o.To)}, nil
	}
	return compactInPlace(ctx, dir, &o)
}

func newID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails: crypto/rand
	return id
}

var staleName = regexp.MustCompile(`^\.(.+)\.[0-9a-f]{8}$`)

// besideName is the folder in which a checkpoint is compacted, and where what is left of the old one stays.
func besideName(e *entry) string {
	return filepath.Join(filepath.Dir(e.dir), "."+filepath.Base(e.dir)+"."+e.id[:8])
}

// staleFor returns the folder that a folder beside it is for, or "" where it is none of those.
func staleFor(dir string) string {
	if m := staleName.FindStringSubmatch(filepath.Base(dir)); m != nil {
		return filepath.Join(filepath.Dir(dir), m[1])
	}
	return ""
}

func compactInPlace(ctx context.Context, dir string, o *CompactOptions) (*Compacted, error) {
	dirs, err := checkpointsIn([]string{dir})
	if err != nil {
		return nil, err
	}
	dir = dirs[0]
	if _, err := store.OpenFolder(dir); err != nil {
		return nil, err
	}
	l, err := LockExclusive(dir)
	if err != nil {
		return nil, err
	}
	defer l.Unlock() //nolint:errcheck // closing a folder loses nothing
	f, err := scan(dirs, o.Roots)
	if err != nil {
		return nil, err
	}
	e := f.dirs[dir]
	if e == nil || e.err != nil {
		return nil, errors.Join(fmt.Errorf("cannot compact %s", dir), e.failure())
	}
	reading := &Lock{}
	defer reading.Unlock() //nolint:errcheck // closing a folder loses nothing
	if err := f.shareAncestors(ctx, e, reading); err != nil {
		return nil, err
	}
	done := &Compacted{Dir: dir}
	err = f.replace(e, l, &o.Options, func(beside string) error {
		done.Manifest, err = rewrite(ctx, dir, beside, o)
		return err
	})
	if err != nil || o.DryRun {
		return done, err
	}
	if err := reading.Unlock(); err != nil {
		return nil, err
	}
	done.Report, err = removeMoved(besideName(e), l, &o.Options)
	return done, err
}

// replace lets write make another form of the checkpoint e in a folder beside it, and lets the two folders change places.
func (f *forest) replace(e *entry, l *Lock, o *Options, write func(beside string) error) error {
	beside := besideName(e)
	if err := f.clear(beside, l, o); err != nil {
		return err
	}
	if err := write(beside); err != nil || o.DryRun {
		return err
	}
	if err := o.step("swap "+e.dir, func() error { return swap(e.dir, beside) }); err != nil {
		return err
	}
	l.moved(e.dir, beside)
	return nil
}

func (e *entry) failure() error {
	if e == nil {
		return store.ErrNoCheckpoint
	}
	return e.err
}

// shareAncestors holds what e is read from.
func (f *forest) shareAncestors(ctx context.Context, e *entry, l *Lock) error {
	for _, a := range f.ancestors(e) {
		if _, err := l.share(ctx, a.dir, func() bool { return true }); err != nil && !errors.Is(err, store.ErrNoCheckpoint) {
			return err
		}
	}
	return nil
}

// clear removes what a compaction of the same checkpoint left that was killed.
func (f *forest) clear(beside string, l *Lock, o *Options) error {
	e := f.dirs[beside]
	if e == nil {
		return nil
	}
	if err := l.exclude(beside); err != nil {
		return err
	}
	if _, err := f.remove([]string{beside}, l, o); err != nil {
		return err
	}
	if _, err := store.OpenData(beside); err == nil {
		return fmt.Errorf("cannot compact: %s has what is left of an older checkpoint that others need: compact into another folder", beside)
	}
	return nil
}

// swap lets two folders change places in one step.
func swap(a, b string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("cannot put the new checkpoint in the place of %s: %w: compact into another folder", a, err)
	}
	return syncDir(filepath.Dir(a))
}

// moved notes that a folder that is held has another name now.
func (l *Lock) moved(from, to string) {
	for i, dir := range l.dirs {
		if dir == from {
			l.dirs[i] = to
		}
	}
}

// removeMoved removes the old checkpoint after the new one took its place.
func removeMoved(dir string, l *Lock, o *Options) (*Report, error) {
	f, err := scan([]string{dir}, o.Roots)
	if err != nil {
		return nil, err
	}
	if err := f.lockLeftovers([]string{dir}, l); err != nil {
		return nil, err
	}
	if f, err = scan([]string{dir}, o.Roots); err != nil {
		return nil, err
	}
	return f.remove([]string{dir}, l, o)
}

// rewrite reads the checkpoint in from, ancestors and all, and writes it to the folder to.
func rewrite(ctx context.Context, from, to string, o *CompactOptions) (*image.Manifest, error) {
	old, err := Open(from, o.Roots...)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	m := *old.Manifest()
	if o.Codec == nil {
		if o.Codec, err = codec.New(m.Codec, 0); err != nil {
			return nil, err
		}
	}
	if o.Shards == 0 {
		o.Shards = len(m.Shards)
	}
	if o.DryRun {
		return &m, nil
	}
	target, err := store.CreateFolder(to)
	if err != nil {
		return nil, err
	}
	w, err := writer.New(target, writer.Options{Shards: o.Shards, Codec: o.Codec, ID: newID()})
	if err != nil {
		return nil, err
	}
	m.Parent, m.Depth, m.Origins, m.Shards = "", 0, nil, nil
	all := func(image.BlockInfo) bool { return true }
	// By families: where differences are here and there, as in a long chain, each block is read once.
	if err := o.step("write "+to, func() error { return copyAll(ctx, old, families.Of(old), w, all, &m, o.Progress) }); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return &m, verifyNew(ctx, to, o.Roots)
}

func verifyNew(ctx context.Context, dir string, roots []string) error {
	c, err := Open(dir, roots...)
	if err != nil {
		return err
	}
	return errors.Join(c.Verify(ctx, runtime.NumCPU(), nil), c.Close())
}

// blocks is the memory of a checkpoint: by its blocks, or by families.
type blocks interface {
	Blocks() int
	Block(i int) image.BlockInfo
	ReadBlock(i int, b *reader.Buffer) ([]byte, error)
}

var (
	_ blocks = (*reader.Checkpoint)(nil)
	_ blocks = (*families.Families)(nil)
)

// copyAll gives what a checkpoint has to a Writer, and publishes. Of the blocks of memory those are given that want tells.
func copyAll(ctx context.Context, old *reader.Checkpoint, memory blocks, w *writer.Writer, want func(image.BlockInfo) bool, m *image.Manifest, progress func(done, total int64)) error {
	if err := copyMemory(ctx, memory, w, want, progress); err != nil {
		return err
	}
	present := map[int][]image.Range{}
	for _, pid := range old.PIDs() {
		present[pid] = old.Ranges(pid)
		if zeros := old.ZeroRanges(pid); len(zeros) > 0 {
			if err := w.PutZero(0, pid, zeros); err != nil {
				return err
			}
		}
	}
	for _, file := range old.Files() {
		if err := copyFile(old, w, file.Name); err != nil {
			return err
		}
	}
	return w.Finish(present, m)
}

func copyFile(old *reader.Checkpoint, w *writer.Writer, name string) error {
	r, to, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	read := make(chan error, 1)
	go func() { read <- errors.Join(old.WriteFile(name, to), to.Close()) }()
	err = w.PutFile(name, r)
	return errors.Join(err, r.Close(), <-read)
}

// run is how many blocks a worker copies in a row, so that neighbours stay together.
const run = 32

// copyMemory copies all pages in blocks that are as large as they can be: those of a long chain have few wanted pages each.
func copyMemory(ctx context.Context, old blocks, w *writer.Writer, want func(image.BlockInfo) bool, progress func(done, total int64)) error {
	total := old.Blocks()
	var next, done atomic.Int64
	workers := runtime.NumCPU()
	errs := make([]error, workers)
	var crew sync.WaitGroup
	for i := range workers {
		crew.Go(func() {
			c := copier{old: old, w: w, want: want, blocks: map[int]*image.PageBlock{}}
			for errs[i] == nil && ctx.Err() == nil {
				from := int(next.Add(run)) - run
				if from >= total {
					break
				}
				until := min(from+run, total)
				errs[i] = c.copy(from, until)
				if n := done.Add(int64(until - from)); progress != nil {
					progress(n, int64(total))
				}
			}
			if errs[i] == nil {
				errs[i] = c.flushAll()
			}
		})
	}
	crew.Wait()
	return errors.Join(errors.Join(errs...), ctx.Err())
}

// copier is one worker.
type copier struct {
	old    blocks
	w      *writer.Writer
	want   func(image.BlockInfo) bool
	buf    reader.Buffer
	blocks map[int]*image.PageBlock // being filled, by process
}

func (c *copier) copy(from, until int) error {
	for i := from; i < until; i++ {
		info := c.old.Block(i)
		if !c.want(info) {
			continue
		}
		data, err := c.old.ReadBlock(i, &c.buf)
		if err != nil {
			return err
		}
		for _, p := range info.Pieces {
			if err := c.add(p, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// add puts the pages of a piece to those of its process.
func (c *copier) add(p image.Piece, data []byte) error {
	b := c.blocks[p.PID]
	if b == nil {
		b = &image.PageBlock{PID: p.PID, Data: make([]byte, 0, image.MaxBlock)}
		c.blocks[p.PID] = b
	}
	for done := uint32(0); done < p.Pages; {
		n := min(p.Pages-done, uint32((image.MaxBlock-len(b.Data))/image.PageSize))
		if n == 0 {
			if err := c.flush(b); err != nil {
				return err
			}
			continue
		}
		at := int(p.First+done) * image.PageSize
		b.Extents = append(b.Extents, image.Extent{Addr: p.Addr + uint64(done)*image.PageSize, Pages: n})
		b.Data = append(b.Data, data[at:at+int(n)*image.PageSize]...)
		done += n
	}
	return nil
}

func (c *copier) flush(b *image.PageBlock) error {
	if len(b.Data) == 0 {
		return nil
	}
	err := c.w.PutPages(0, *b)
	b.Extents, b.Data = b.Extents[:0], b.Data[:0]
	return err
}

func (c *copier) flushAll() error {
	for _, b := range c.blocks {
		if err := c.flush(b); err != nil {
			return err
		}
	}
	return nil
}
