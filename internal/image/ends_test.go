package image_test

import (
	"bytes"
	"io"
	"io/fs"

	"stasis/internal/store"
)

// ends is a target that keeps of each shard only what is read to open it, and the source of that.
type ends struct {
	manifest []byte
	shards   []*endsOf
}

// endsOf is the beginning of a shard and what was written last.
type endsOf struct {
	name        string
	first, last []byte
	size        int64
}

var (
	_ store.Target = (*ends)(nil)
	_ store.Source = (*ends)(nil)
	_ store.File   = (*endsOf)(nil)
)

func (e *ends) Create(name string) (store.Writer, error) {
	f := &endsOf{name: name}
	e.shards = append(e.shards, f)
	return f, nil
}

func (e *ends) Commit(manifest []byte) error { e.manifest = manifest; return nil }
func (e *ends) Abort() error                 { return nil }

func (e *ends) Name() string              { return "the ends" }
func (e *ends) Manifest() ([]byte, error) { return e.manifest, nil }

func (e *ends) Open(name string) (store.File, error) {
	for _, f := range e.shards {
		if f.name == name {
			return f, nil
		}
	}
	return nil, fs.ErrNotExist
}

func (f *endsOf) Write(p []byte) (int, error) {
	if f.size == 0 {
		f.first = bytes.Clone(p)
	}
	f.last = append(f.last[:0], p...)
	f.size += int64(len(p))
	return len(p), nil
}

func (f *endsOf) Finish() error { return nil }
func (f *endsOf) Abort() error  { return nil }
func (f *endsOf) Close() error  { return nil }
func (f *endsOf) Size() int64   { return f.size }
func (f *endsOf) Fd() uintptr   { return ^uintptr(0) }

func (f *endsOf) ReadAt(p []byte, off int64) (int, error) {
	from := f.first
	if begin := f.size - int64(len(f.last)); off >= begin {
		from, off = f.last, off-begin
	}
	if off+int64(len(p)) > int64(len(from)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, from[off:]), nil
}
