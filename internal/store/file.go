package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// folderFile is a shard in a folder. A restore from a long chain opens a thousand of them to read a few blocks of each, and an os.File
// takes three system calls more, to be told that a regular file can't be polled.
type folderFile struct {
	size int64

	mu sync.RWMutex // held for reading while fd is used
	fd int          // guarded by mu; -1: closed
}

var _ File = (*folderFile)(nil)

// openFile opens a regular file for reading. Its errors are those of system calls.
func openFile(path string) (*folderFile, error) {
	// Not to hang where someone put a named pipe.
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errNotRegular
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &folderFile{fd: fd, size: st.Size}, nil
}

var errNotRegular = errors.New("it is not a regular file")

// Size is the length in bytes that it had when it was opened.
func (f *folderFile) Size() int64 { return f.size }

// Fd is the descriptor, which ends with Close.
func (f *folderFile) Fd() uintptr {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return uintptr(f.fd)
}

// ReadAt implements [io.ReaderAt].
func (f *folderFile) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.fd < 0 {
		return 0, os.ErrClosed
	}
	for n < len(p) {
		got, err := retry(func() (int, error) { return unix.Pread(f.fd, p[n:], off+int64(n)) })
		if err != nil {
			return n, err
		}
		if got == 0 {
			return n, io.EOF
		}
		n += got
	}
	return n, nil
}

// Close closes it. A second time is os.ErrClosed.
func (f *folderFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return os.ErrClosed
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

// retry makes a system call again that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
