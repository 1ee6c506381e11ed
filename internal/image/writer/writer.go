package writer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/delta"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/plan"
	"stasis/internal/image/reader"
	"stasis/internal/store"
)

// Options say how a checkpoint is written.
type Options struct {
	Shards int         // number of files that are written at once, 1 to MaxShards
	Codec  codec.Codec // nil: none
	ID     [16]byte    // of the checkpoint; it must be random

	// Parent, where it is set, is the checkpoint that this one builds on, opened with OpenChain. What is as it was there is
	// referred to. The caller closes it after Finish or Abort.
	Parent *reader.Checkpoint
	// ParentPath is where the parent is, seen from the new checkpoint. It is for the manifest; the paths of the parent's own
	// origins are put behind it.
	ParentPath string

	NoCompare bool // don't look whether what is put is as the parent has it
	NoShare   bool // don't look whether pages that are put are equal to each other
	NoDelta   bool // don't store pages as differences to those of the parent

	// MaxOrigins is the most ancestors that the checkpoint may refer to; 0: the constant of that name. See Finish.
	MaxOrigins int

	// InsteadOf says that the checkpoint is to take the place of Parent: its manifest names Parent's own parent.
	InsteadOf bool
}

// Writer writes one checkpoint. PutPages, PutZero, PutFile and Written may be called from any number of goroutines at once.
// Finish or Abort ends it, when none of them is running.
//
// Between calls it holds some 50 bytes for each block and 8 for each extent and for each difference, 32 for each run of pages that
// are elsewhere, and no data; what the target buffers is the target's. A call needs a few blocks of scratch space, which is used again.
type Writer struct {
	target store.Target
	codec  codec.Codec
	id     [16]byte
	shards []*shard

	parent     *reader.Checkpoint // may be nil
	insteadOf  bool
	maxOrigins int
	noCompare  bool
	noDelta    bool
	table      *pageTable // nil: equal pages are not looked for
	worth      *worth

	records plan.Records // zeros, refs, fileRefs and files are guarded by mu; a shard's belong to whoever has the shard

	unreadable  unreadable   // blocks of the parent's pages
	unreadFiles atomic.Int64 // and of its files
	scratches   sync.Pool

	free chan *shard // those that nobody is writing to

	order  atomic.Uint64 // counts PutPages and PutZero
	raw    atomic.Int64
	stored atomic.Int64

	mu    sync.Mutex
	err   error // guarded by mu: the first that made a shard unusable
	ended bool  // guarded by mu
}

// shard is one file being written. It belongs to whoever took it from Writer.free.
type shard struct {
	no      int
	w       store.Writer
	off     int64 // of the next block
	records *plan.ShardRecords
}

// New begins a checkpoint in t, which it owns from then on: Finish commits it, Abort (also here, on an error) aborts it.
func New(t store.Target, o Options) (*Writer, error) {
	w := &Writer{target: t, codec: o.Codec, id: o.ID, parent: o.Parent, insteadOf: o.InsteadOf, noCompare: o.NoCompare, noDelta: o.NoDelta, worth: newWorth()}
	w.records.WindowRuns = plan.WindowRuns
	if p := o.Parent; p != nil {
		w.records.Parent, w.records.ParentID, w.records.ParentPath = p.Tables, p.ID(), o.ParentPath
		w.records.ParentOrigins = p.Manifest().Origins
	}
	w.maxOrigins = o.MaxOrigins
	if w.maxOrigins <= 0 {
		w.maxOrigins = MaxOrigins
	}
	w.scratches.New = func() any { return new(scratch) }
	if !o.NoShare {
		w.table = newPageTable()
	}
	if err := w.start(o.Shards); err != nil {
		return nil, errors.Join(err, t.Abort())
	}
	return w, nil
}

func (w *Writer) start(shards int) error {
	if shards < 1 || shards > image.MaxShards {
		return fmt.Errorf("a checkpoint can't have %d shards: choose 1 to %d", shards, image.MaxShards)
	}
	if w.parent != nil && w.parent.ID() == w.id {
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
		f, err := w.target.Create(image.ShardName(i))
		if err != nil {
			return err
		}
		t := &shard{no: i, w: f, off: image.ShardHeader, records: new(plan.ShardRecords)}
		w.shards, w.records.Shards = append(w.shards, t), append(w.records.Shards, t.records)
	}
	// After all are there, because the target shares its buffers among them from the first byte on.
	for i, t := range w.shards {
		if _, err := t.w.Write(ondisk.Header{Shard: uint32(i), Shards: uint32(shards), ID: w.id}.Encode()); err != nil {
			return err
		}
		w.stored.Add(image.ShardHeader)
		w.free <- t
	}
	return nil
}

// Written returns what was given to PutPages and PutFile and what that became in the shards, both in bytes.
func (w *Writer) Written() (raw, stored int64) { return w.raw.Load(), w.stored.Load() }

// scratch is what a call of PutPages or PutFile needs.
type scratch struct {
	fates   []fate         // of the pages of the call
	pages   []uint64       // their addresses / PageSize
	extents []image.Extent // those that go into a block
	packed  []byte         // and their content; pieces of files
	head    []byte
	out     []byte            // compressed
	old     reader.BlockCache // blocks of the parent
	oldPage reader.Page       // a page of it
	runs    []delta.Patch
	delta   delta.Builder // differences from pages of the parent, which numbers the blocks of their bases
	file    reader.Buffer // a piece of the parent's file
}

// put compresses a block and writes it to whichever shard is free, and says where its first page is. The order is that of
// package plan.
func (w *Writer) put(s *scratch, head ondisk.BlockHead, data []byte, order uint64) (plan.PageAt, error) {
	payload, id := data, codec.None
	out, ok, err := w.codec.Compress(s.out[:0], data)
	if err != nil {
		return plan.PageAt{}, w.fail(err)
	}
	if cap(out) > cap(s.out) {
		s.out = out
	}
	if ok {
		payload, id = out, w.codec.ID()
	}
	head.Codec, head.Raw, head.Stored, head.ID = id, uint32(len(data)), uint32(len(payload)), ondisk.ShortID(w.id)
	if pad := ondisk.Padded(len(payload)) - len(payload); pad > 0 {
		payload = append(payload, make([]byte, pad)...)
		if ok && cap(payload) > cap(s.out) {
			s.out = payload
		}
	}
	payloadSum := xxh3.Hash(payload)

	to := <-w.free
	defer func() { w.free <- to }()
	head.Shard, head.Offset = uint32(to.no), uint64(to.off)
	s.head = head.Encode(s.head, payloadSum)
	for _, part := range [][]byte{s.head, payload} {
		if _, err := to.w.Write(part); err != nil {
			return plan.PageAt{}, w.fail(err)
		}
	}
	to.records.Note(&head, binary.LittleEndian.Uint64(s.head[56:]), order, s.delta.Bases)
	n := int64(len(s.head) + len(payload))
	to.off += n
	w.stored.Add(n)
	return plan.PageAt{Block: uint32(to.records.Blocks.Len() - 1), Home: int16(to.no)}, nil
}

// ErrEnded is wrapped by the errors of a Writer that was used after Finish or Abort.
var ErrEnded = errors.New("the checkpoint was finished or aborted already")

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
