package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// align is what direct I/O asks of addresses, offsets and lengths. Every disk that Linux knows takes pages.
	align = 4096
	// maxBuffer and minBuffer bound what goes to the disk in one call. Each file being written has two such buffers, and those
	// of a checkpoint together have allBuffers, as far as minBuffer lets them.
	maxBuffer, minBuffer, allBuffers = 1 << 20, 64 << 10, 64 << 20
)

// fileWriter writes one file of a folder past the page cache (O_DIRECT): at the rates of today's disks the copy into the page
// cache would cost more than everything else that a dump does. Data is collected in one of two aligned buffers while a
// goroutine writes the other one. What is left at the end and is no whole number of pages is written through the page cache.
//
// Where a file system refuses direct I/O, the page cache is used, and told to begin to write at once (sync_file_range), so that
// the fsync at the end has little left to do.
type fileWriter struct {
	t        *FolderTarget
	name     string
	f        *os.File
	unnamed  bool // no name until link
	direct   bool // the flusher's, then Finish's
	linked   bool
	finished bool
	closed   bool

	cur  []byte // being filled; length is what is in it
	off  int64  // in the file, of cur
	free chan []byte
	work chan flush
	done sync.WaitGroup // the flusher

	mu  sync.Mutex
	err error // guarded by mu: the first that the flusher met
}

type flush struct {
	buf []byte
	off int64
}

var _ Writer = (*fileWriter)(nil)
var _ Rereader = (*fileWriter)(nil)

// newFileWriter opens a file in t's folder that gets its name when it is linked.
func newFileWriter(t *FolderTarget, name string) (*fileWriter, error) {
	w := &fileWriter{t: t, name: name, direct: !t.buffered, unnamed: !t.named}
	fd, err := -1, error(unix.EINVAL)
	if w.direct {
		fd, err = w.open(unix.O_DIRECT)
	}
	if errors.Is(err, unix.EINVAL) {
		w.direct = false
		fd, err = w.open(0)
	}
	if err != nil {
		return nil, explain("cannot create", w.path(), err)
	}
	w.f = os.NewFile(uintptr(fd), w.path())
	return w, nil
}

func (w *fileWriter) path() string { return filepath.Join(w.t.path, w.name) }

// open makes an unnamed file, or a partial one where the file system has no unnamed files.
func (w *fileWriter) open(flags int) (int, error) {
	const mode = 0o600
	flags |= unix.O_RDWR | unix.O_CLOEXEC
	if w.unnamed {
		fd, err := unix.Openat(int(w.t.dir.Fd()), ".", flags|unix.O_TMPFILE, mode)
		// A kernel or file system that knows nothing of O_TMPFILE sees an attempt to open a directory for writing.
		if !isAny(err, unix.EOPNOTSUPP, unix.EISDIR, unix.ENOSYS) {
			return fd, err
		}
		w.unnamed = false
	}
	return unix.Openat(int(w.t.dir.Fd()), w.name+partial, flags|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode)
}

// Write takes p into the buffers. An error may be that of an earlier Write.
func (w *fileWriter) Write(p []byte) (int, error) {
	if w.finished || w.closed {
		return 0, fmt.Errorf("cannot write to %s: it was finished or aborted already", w.path())
	}
	if w.work == nil {
		w.start()
	}
	written := 0
	for len(p) > 0 {
		n := copy(w.cur[len(w.cur):cap(w.cur)], p)
		w.cur = w.cur[:len(w.cur)+n]
		p = p[n:]
		written += n
		if len(w.cur) == cap(w.cur) {
			w.work <- flush{w.cur, w.off}
			w.off += int64(len(w.cur))
			w.cur = (<-w.free)[:0]
			if err := w.failed(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// start makes the buffers and the flusher. Files that nothing is written to go without.
func (w *fileWriter) start() {
	size := w.t.bufferSize()
	w.cur = alignedBuffer(size)[:0]
	w.free = make(chan []byte, 2)
	w.free <- alignedBuffer(size)
	w.work = make(chan flush, 1)
	w.done.Add(1)
	go w.flusher()
}

// alignedBuffer returns n bytes whose address is fit for direct I/O.
func alignedBuffer(n int) []byte {
	raw := make([]byte, n+align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (align - 1)
	return raw[skip : skip+n : skip+n]
}

// flusher writes full buffers to the disk and gives them back. After an error it only gives them back.
func (w *fileWriter) flusher() {
	defer w.done.Done()
	for job := range w.work {
		if w.failed() == nil {
			if err := w.put(job.buf, job.off); err != nil {
				w.mu.Lock()
				w.err = err
				w.mu.Unlock()
			}
		}
		w.free <- job.buf
	}
}

func (w *fileWriter) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// put writes buf at off, directly where the file system lets us.
func (w *fileWriter) put(buf []byte, off int64) error {
	_, err := w.f.WriteAt(buf, off)
	if err != nil && w.direct && errors.Is(err, unix.EINVAL) {
		if err = w.goBuffered(); err == nil {
			_, err = w.f.WriteAt(buf, off)
		}
	}
	if err != nil {
		return explain("cannot write", w.path(), err)
	}
	if !w.direct {
		_ = unix.SyncFileRange(int(w.f.Fd()), off, int64(len(buf)), unix.SYNC_FILE_RANGE_WRITE) // advice only
	}
	return nil
}

// goBuffered turns direct I/O off.
func (w *fileWriter) goBuffered() error {
	flags, err := unix.FcntlInt(w.f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(w.f.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	w.direct = false
	return err
}

// Finish writes the rest and waits until all of it is on the disk. The file stays open, for ReadAt and link.
func (w *fileWriter) Finish() error {
	if w.finished || w.closed {
		return fmt.Errorf("cannot finish %s: it was finished or aborted already", w.path())
	}
	if err := w.stop(); err != nil {
		return err
	}
	whole := len(w.cur) &^ (align - 1)
	if whole > 0 {
		if err := w.put(w.cur[:whole], w.off); err != nil {
			return err
		}
	}
	if w.direct {
		if err := w.goBuffered(); err != nil {
			return explain("cannot write", w.path(), err)
		}
	}
	if tail := w.cur[whole:]; len(tail) > 0 {
		if err := w.put(tail, w.off+int64(whole)); err != nil {
			return err
		}
	}
	w.cur, w.free = nil, nil
	if err := w.f.Sync(); err != nil {
		return explain("cannot sync", w.path(), err)
	}
	w.finished = true
	return nil
}

// stop waits for the flusher to end and returns its error.
func (w *fileWriter) stop() error {
	if w.work != nil {
		close(w.work)
		w.done.Wait()
		w.work = nil
	}
	return w.failed()
}

// ReadAt reads what was finished back from the disk.
func (w *fileWriter) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.f.ReadAt(p, off)
	return n, err
}

// link gives the file its name, which must be free.
func (w *fileWriter) link() error {
	var err error
	if w.unnamed {
		fd, dir := int(w.f.Fd()), int(w.t.dir.Fd())
		err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), dir, w.name, unix.AT_SYMLINK_FOLLOW)
		if errors.Is(err, unix.ENOENT) {
			// Either the folder is gone or /proc is not mounted; the other way needs CAP_DAC_READ_SEARCH, but no /proc.
			err = unix.Linkat(fd, "", dir, w.name, unix.AT_EMPTY_PATH)
		}
	} else {
		err = unix.Renameat2(int(w.t.dir.Fd()), w.name+partial, int(w.t.dir.Fd()), w.name, unix.RENAME_NOREPLACE)
		if isAny(err, unix.EINVAL, unix.ENOSYS) {
			err = w.renameUnlessThere()
		}
	}
	if err != nil {
		return explain("cannot publish", w.path(), err)
	}
	w.linked = true
	return nil
}

// renameUnlessThere is for file systems that can't rename without replacing; between its two steps there is a gap, which the
// lock on the folder closes among dumps.
func (w *fileWriter) renameUnlessThere() error {
	dir := int(w.t.dir.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(dir, w.name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return unix.EEXIST
	}
	return unix.Renameat(dir, w.name+partial, dir, w.name)
}

// Abort drops the file. A name that Commit gave it is the target's to remove.
func (w *fileWriter) Abort() error {
	if w.closed {
		return nil
	}
	_ = w.stop() // whatever could not be written is not wanted any more
	w.close()
	if w.unnamed || w.linked {
		return nil
	}
	if err := unix.Unlinkat(int(w.t.dir.Fd()), w.name+partial, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return explain("cannot remove", w.path()+partial, err)
	}
	return nil
}

func (w *fileWriter) close() {
	if !w.closed {
		w.closed = true
		w.f.Close()
	}
}
