package writer

import (
	"errors"
	"fmt"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/reader"
	"stasis/internal/store"
)

// readBack opens what was written as a reader will, so that nothing is published that can't be opened. That needs no ancestor:
// the index says all of their blocks.
func (w *Writer) readBack(manifest []byte, tails []tail) (*reader.Checkpoint, error) {
	src := &written{manifest: manifest, w: w, tails: tails}
	return reader.Open(src)
}

// written is the source that readBack opens: the shards as their writers read them back, or, where they can't, what was given
// to them.
type written struct {
	w        *Writer
	manifest []byte
	tails    []tail
}

var _ store.Source = (*written)(nil)

func (s *written) Name() string              { return "being written" }
func (s *written) Manifest() ([]byte, error) { return s.manifest, nil }

func (s *written) Open(name string) (store.File, error) {
	for i, t := range s.w.shards {
		if image.ShardName(i) == name {
			f := &writtenFile{head: ondisk.Header{Shard: uint32(i), Shards: uint32(len(s.w.shards)), ID: s.w.id}, tail: s.tails[i]}
			f.back, _ = t.w.(store.Rereader)
			return f, nil
		}
	}
	return nil, fmt.Errorf("there is no shard %s", name)
}

// writtenFile has the beginning and the end of a shard, which is all that Open reads.
type writtenFile struct {
	back store.Rereader // nil: from memory
	head ondisk.Header
	tail tail
}

func (f *writtenFile) Size() int64  { return f.tail.size }
func (f *writtenFile) Fd() uintptr  { return reader.NoFd }
func (f *writtenFile) Close() error { return nil }

func (f *writtenFile) ReadAt(p []byte, off int64) (int, error) {
	if f.back != nil {
		return f.back.ReadAt(p, off)
	}
	from := f.head.Encode()
	if begin := f.tail.size - int64(len(f.tail.bytes)); off >= begin {
		from, off = f.tail.bytes, off-begin
	}
	if off+int64(len(p)) > int64(len(from)) {
		return 0, errors.New("that part of the shard is not in memory any more")
	}
	return copy(p, from[off:]), nil
}

// superseded sums up the blocks that were written and are not in c.
func (w *Writer) superseded(c *reader.Checkpoint) int64 {
	_, own := c.Wanted()
	total := w.stored.Load() - own
	for i := range w.shards {
		total -= image.ShardHeader + c.TailSize(i)
	}
	return total
}
