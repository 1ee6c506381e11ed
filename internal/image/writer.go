package image

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	"stasis/internal/codec"
	"stasis/internal/store"
)

// WriterOptions say how a checkpoint is written.
type WriterOptions struct {
	Shards int         // number of files that are written at once, 1 to MaxShards
	Codec  codec.Codec // nil: none
	ID     [16]byte    // of the checkpoint; it must be random

	// Parent, where it is set, is the checkpoint that this one builds on, opened with OpenChain. What is as it was there is
	// referred to. The caller closes it after Finish or Abort.
	Parent *Checkpoint
	// ParentPath is where the parent is, seen from the new checkpoint. It is for the manifest; the paths of the parent's own
	// origins are put behind it.
	ParentPath string
}

// Writer writes one checkpoint. PutPages, PutZero, PutFile and Written may be called from any number of goroutines at once.
// Finish or Abort ends it, when none of them is running.
//
// Between calls it holds some 50 bytes for each block and 8 for each extent, and no data; what the target buffers is the
// target's. A call needs up to two blocks of scratch space, which is used again.
type Writer struct {
	target store.Target
	codec  codec.Codec
	id     [16]byte
	shards []*shard

	parent     *Checkpoint // may be nil
	parentPath string

	free chan *shard // those that nobody is writing to

	order  atomic.Uint64 // counts PutPages and PutZero
	raw    atomic.Int64
	stored atomic.Int64

	mu    sync.Mutex
	zeros list[zeroRec] // guarded by mu
	files []FileInfo    // guarded by mu; Size grows
	err   error         // guarded by mu: the first that made a shard unusable
	ended bool          // guarded by mu
}

// shard is one file being written. It belongs to whoever took it from Writer.free.
type shard struct {
	no      int
	w       store.Writer
	off     int64 // of the next block
	blocks  list[blockRec]
	extents list[packedExtent]
}

// blockRec is what the Writer remembers of a block.
type blockRec struct {
	sum     uint64
	off     uint64
	order   uint64 // pages: see Writer.stamp. files: where in the file the piece belongs
	owner   uint32 // pid, or number of the file
	extent  uint32 // first of its extents in shard.extents
	stored  uint32
	raw     uint32
	kind    blockKind
	codec   codec.ID
	extents uint8
}

// zeroRec is a run of zero pages.
type zeroRec struct {
	order uint64
	page  uint64 // address / PageSize
	pages uint64
	pid   uint32
}

// packedExtent is an Extent of at most MaxPages pages in one number: the page's number, and the count in the lowest byte.
type packedExtent uint64

func pack(e Extent) packedExtent           { return packedExtent(e.Addr/PageSize<<8 | uint64(e.Pages)) }
func (p packedExtent) page() uint64        { return uint64(p) >> 8 }
func (p packedExtent) pages() uint32       { return uint32(p & 0xff) }
func stamp(round int, count uint64) uint64 { return uint64(round)<<44 | count }

// list grows without moving what is in it, so that it never needs twice its size.
type list[T any] struct{ chunks [][]T }

const chunk = 2048

func (l *list[T]) add(v T) {
	if n := len(l.chunks); n == 0 || len(l.chunks[n-1]) == chunk {
		l.chunks = append(l.chunks, make([]T, 0, chunk))
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, v)
}

func (l *list[T]) len() int {
	if len(l.chunks) == 0 {
		return 0
	}
	return (len(l.chunks)-1)*chunk + len(l.chunks[len(l.chunks)-1])
}

func (l *list[T]) at(i int) *T { return &l.chunks[i/chunk][i%chunk] }

// NewWriter begins a checkpoint in t, which it owns from then on: Finish commits it, Abort (also here, on an error) aborts it.
func NewWriter(t store.Target, o WriterOptions) (*Writer, error) {
	w := &Writer{target: t, codec: o.Codec, id: o.ID, parent: o.Parent, parentPath: o.ParentPath}
	if err := w.start(o.Shards); err != nil {
		return nil, errors.Join(err, t.Abort())
	}
	return w, nil
}

func (w *Writer) start(shards int) error {
	if shards < 1 || shards > MaxShards {
		return fmt.Errorf("a checkpoint can't have %d shards: choose 1 to %d", shards, MaxShards)
	}
	if w.parent != nil && w.parent.id == w.id {
		return fmt.Errorf("a checkpoint can't have its own id %x as that of its parent: choose a new one", w.id)
	}
	if w.codec == nil {
		none, err := codec.New("none", 0)
		if err != nil {
			return err
		}
		w.codec = none
	}
	w.free = make(chan *shard, shards)
	for i := range shards {
		f, err := w.target.Create(ShardName(i))
		if err != nil {
			return err
		}
		w.shards = append(w.shards, &shard{no: i, w: f, off: headerSize})
	}
	// After all are there, because the target shares its buffers among them from the first byte on.
	for i, t := range w.shards {
		if _, err := t.w.Write(header{uint32(i), uint32(shards), w.id}.encode()); err != nil {
			return err
		}
		w.stored.Add(headerSize)
		w.free <- t
	}
	return nil
}

// Written returns what was given to PutPages and PutFile and what that became in the shards, both in bytes.
func (w *Writer) Written() (raw, stored int64) { return w.raw.Load(), w.stored.Load() }

// scratch is what a call of PutPages or PutFile needs.
type scratch struct {
	head   []byte
	packed []byte // blocks without their zero pages; pieces of files
	out    []byte // compressed
	kept   []Extent
	zeros  []zeroRec
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// PutPages stores pages of one process as they were in a round. Of a page that was put more than once, the newest round
// counts, and within a round the last call. Zero pages are stored as such. b.Data may be used again when it returns.
func (w *Writer) PutPages(round int, b PageBlock) error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := b.check(round); err != nil {
		return err
	}
	w.raw.Add(int64(len(b.Data)))
	order := stamp(round, w.order.Add(1))
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if zero := zeroPages(b.Data); zero != 0 {
		if b = w.splitZero(s, b, zero, order); len(b.Data) == 0 {
			return nil
		}
	}
	head := blockHead{kind: pageBlock, owner: uint32(b.PID), extents: b.Extents}
	return w.put(s, head, b.Data, order)
}

// PutZero notes ranges of a process whose pages are known to be zero in a round, without anybody having read them.
func (w *Writer) PutZero(round, pid int, ranges []Range) error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := checkPut(round, pid); err != nil {
		return err
	}
	order := stamp(round, w.order.Add(1))
	for _, r := range ranges {
		if err := r.check(); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range ranges {
		w.zeros.add(zeroRec{order, r.Start / PageSize, r.Len() / PageSize, uint32(pid)})
	}
	return nil
}

func (r Range) check() error {
	if r.Start >= r.End || r.End > maxAddr || r.Start%PageSize != 0 || r.End%PageSize != 0 {
		return fmt.Errorf("%#x-%#x is no range of pages", r.Start, r.End)
	}
	return nil
}

func checkPut(round, pid int) error {
	if round < 0 || round > maxRound {
		return fmt.Errorf("there is no round %d: rounds are 0 to %d", round, maxRound)
	}
	if pid <= 0 || int64(pid) > 1<<31-1 {
		return fmt.Errorf("%d is no pid", pid)
	}
	return nil
}

func (b *PageBlock) check(round int) error {
	if err := checkPut(round, b.PID); err != nil {
		return err
	}
	pages := uint64(0)
	for _, e := range b.Extents {
		if err := e.check(); err != nil {
			return fmt.Errorf("process %d: %w", b.PID, err)
		}
		pages += uint64(e.Pages)
	}
	if len(b.Data) == 0 || len(b.Data) > MaxBlock || uint64(len(b.Data)) != pages*PageSize {
		return fmt.Errorf("a block of process %d has %d bytes for %d pages: it must have %d for each, and at most %d",
			b.PID, len(b.Data), pages, PageSize, MaxBlock)
	}
	return nil
}

// splitZero notes the zero pages of b and returns the rest, in s.
func (w *Writer) splitZero(s *scratch, b PageBlock, zero uint64, order uint64) PageBlock {
	s.packed, s.kept, s.zeros = s.packed[:0], s.kept[:0], s.zeros[:0]
	page := uint32(0) // in b.Data
	for _, e := range b.Extents {
		for done := uint32(0); done < e.Pages; {
			isZero := zero>>(page+done)&1 != 0
			n := uint32(1)
			for done+n < e.Pages && zero>>(page+done+n)&1 != 0 == isZero {
				n++
			}
			run := Extent{e.Addr + uint64(done)*PageSize, n}
			if isZero {
				s.zeros = append(s.zeros, zeroRec{order, run.Addr / PageSize, uint64(n), uint32(b.PID)})
			} else {
				s.kept = append(s.kept, run)
				from := int(page+done) * PageSize
				s.packed = append(s.packed, b.Data[from:from+int(n)*PageSize]...)
			}
			done += n
		}
		page += e.Pages
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, z := range s.zeros {
		w.zeros.add(z)
	}
	return PageBlock{b.PID, s.kept, s.packed}
}

// PutFile stores one of CRIU's image files. Its name must be new to the checkpoint. The caller closes r.
func (w *Writer) PutFile(name string, r io.Reader) error {
	number, err := w.addFile(name)
	if err != nil {
		return err
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if cap(s.packed) < MaxBlock+unit {
		s.packed = make([]byte, 0, MaxBlock+unit)
	}
	buf := s.packed[:MaxBlock]
	off := uint64(0)
	for more := true; more; {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			w.raw.Add(int64(n))
			head := blockHead{kind: fileBlock, owner: number, fileOff: off}
			if err := w.put(s, head, buf[:n], off); err != nil {
				return err
			}
			off += uint64(n)
		}
		more = err == nil
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return w.fail(fmt.Errorf("cannot read CRIU's image %s: %w", name, err))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[number].Size = int64(off)
	return nil
}

func (w *Writer) addFile(name string) (uint32, error) {
	if err := checkFileName(name); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usableLocked(); err != nil {
		return 0, err
	}
	for _, f := range w.files {
		if f.Name == name {
			return 0, fmt.Errorf("CRIU's image %s is in the checkpoint already", name)
		}
	}
	w.files = append(w.files, FileInfo{Name: name})
	return uint32(len(w.files) - 1), nil
}

// put compresses a block and writes it to whichever shard is free. The order is that of blockRec.
func (w *Writer) put(s *scratch, head blockHead, data []byte, order uint64) error {
	payload, id := data, codec.None
	out, ok, err := w.codec.Compress(s.out[:0], data)
	if err != nil {
		return w.fail(err)
	}
	if cap(out) > cap(s.out) {
		s.out = out
	}
	if ok {
		payload, id = out, w.codec.ID()
	}
	head.codec, head.raw, head.stored, head.id = id, uint32(len(data)), uint32(len(payload)), shortID(w.id)
	if pad := padded(len(payload)) - len(payload); pad > 0 {
		payload = append(payload, make([]byte, pad)...)
		if ok && cap(payload) > cap(s.out) {
			s.out = payload
		}
	}
	payloadSum := xxh3.Hash(payload)

	to := <-w.free
	defer func() { w.free <- to }()
	head.shard, head.offset = uint32(to.no), uint64(to.off)
	s.head = head.encode(s.head, payloadSum)
	for _, part := range [][]byte{s.head, payload} {
		if _, err := to.w.Write(part); err != nil {
			return w.fail(err)
		}
	}
	to.note(&head, le.Uint64(s.head[56:]), order)
	n := int64(len(s.head) + len(payload))
	to.off += n
	w.stored.Add(n)
	return nil
}

// note remembers a block that was written.
func (t *shard) note(h *blockHead, sum, order uint64) {
	t.blocks.add(blockRec{
		sum: sum, off: h.offset, order: order, owner: h.owner, extent: uint32(t.extents.len()),
		stored: h.stored, raw: h.raw, kind: h.kind, codec: h.codec, extents: uint8(len(h.extents)),
	})
	for _, e := range h.extents {
		t.extents.add(pack(e))
	}
}

func (w *Writer) usable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.usableLocked()
}

func (w *Writer) usableLocked() error {
	if w.ended {
		return fmt.Errorf("cannot write to the checkpoint: %w", ErrEnded)
	}
	return w.err
}

// fail remembers the first error after which the checkpoint can't be completed, and returns err.
func (w *Writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return err
}

// Abort removes what was written. After a Finish that succeeded it does nothing.
func (w *Writer) Abort() error {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	return w.target.Abort()
}
