package convert

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxOpen bounds how many images of pages are kept open; a tree can have thousands of processes.
	maxOpen = 256
	// directFrom is the length in bytes from which on a write goes past the page cache. Written back from there, the pages
	// would take several times as long; short writes do better with it.
	directFrom = 64 << 10
)

// pageFiles are the images of pages that an export writes, each in many places at once. Its methods may be called from any number
// of goroutines, except for finish.
type pageFiles struct {
	dir string

	mu   sync.Mutex
	open map[string]*pageFile // guarded by mu
	all  []string             // guarded by mu
}

// pageFile is one of them.
type pageFile struct {
	file   *os.File
	direct *os.File // the same without page cache; nil: the file system has no such thing
}

// create makes an image with room for so many bytes, so that a disk that is too small is found early.
func (p *pageFiles) create(name string, size int64) error {
	f, err := os.OpenFile(filepath.Join(p.dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return explained(err)
	}
	if size > 0 {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			err = f.Truncate(size)
		}
	}
	if err != nil {
		err = fmt.Errorf("make room for %s: %w", name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, name)
	if len(p.open) >= maxOpen || err != nil {
		return explained(errors.Join(err, f.Close()))
	}
	direct, err := os.OpenFile(f.Name(), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		direct = nil // no error: it is the quicker of two ways
	}
	p.open[name] = &pageFile{f, direct}
	return nil
}

// use calls work with an image that was created.
func (p *pageFiles) use(name string, work func(*pageFile) error) error {
	p.mu.Lock()
	f := p.open[name]
	p.mu.Unlock()
	if f != nil {
		return work(f)
	}
	file, err := os.OpenFile(filepath.Join(p.dir, name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(work(&pageFile{file: file}), file.Close())
}

// finish makes all images durable, unless err is what went wrong before, and closes them.
func (p *pageFiles) finish(err error) error {
	for _, name := range p.all {
		if err == nil {
			err = p.use(name, func(f *pageFile) error { return f.file.Sync() })
		}
		if f := p.open[name]; f != nil {
			err = errors.Join(err, f.close())
		}
	}
	return explained(err)
}

func (f *pageFile) close() error {
	if f.direct != nil {
		_ = f.direct.Close() // what it wrote is synced by the other
	}
	return f.file.Close()
}

// writeAt writes whole pages. aligned is space of the caller's for direct writes.
func (f *pageFile) writeAt(pages []byte, at int64, aligned []byte) error {
	if f.direct != nil && len(pages) >= directFrom && len(pages) <= len(aligned) {
		n := copy(aligned, pages)
		_, err := f.direct.WriteAt(aligned[:n], at)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		// This file system wants more than pages: the page cache does it.
	}
	_, err := f.file.WriteAt(pages, at)
	return err
}
