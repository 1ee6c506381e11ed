package writer

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/plan"
)

// Finish completes and publishes the checkpoint. present says which pages of which process are in it: those that were there
// when the tree was frozen. Of every such page the newest round counts, then the parent's page at the same address of the same
// pid; so of what never was in the parent, or is another process under the same pid, all must have been put. What was captured
// and is not present is dropped. A page that is present and neither was captured nor is the parent's is a *MissingError; a
// pre-dump (by m.Kind), which nobody restores, just lacks it.
//
// A checkpoint that would refer to more than MaxOrigins ancestors gets what it needs of some of them written into its own shards.
//
// m is completed (see Manifest) and becomes the manifest. Before it is published, every shard's index is read back from where it
// was written, where the target can do that, and checked as a reader would. After an error only Abort is left.
func (w *Writer) Finish(present map[int][]image.Range, m *image.Manifest) error {
	w.mu.Lock()
	err := w.usableLocked()
	w.ended = true
	w.mu.Unlock()
	if err != nil {
		return err
	}
	defer frugal()()
	w.records.Lost, w.records.LostWhy = w.unreadable.all()
	if err := w.consolidate(present, m.Kind == image.KindPreDump); err != nil {
		return err
	}
	indexes, plan, err := plan.Indexes(&w.records, present, m.Kind == image.KindPreDump)
	if err != nil {
		return err
	}
	tails, err := w.writeTails(indexes)
	if err != nil {
		return err
	}
	w.describe(m, tails, plan.Format(), plan.Origins)
	text, err := m.Encode()
	if err != nil {
		return err
	}
	w.forget()
	readBack, err := w.readBack(text, tails)
	if err != nil {
		return fmt.Errorf("the checkpoint does not read back as it was written and is not published: %w", err)
	}
	readBack.SumUp(&m.Figures) // from the indexes as readers will see them
	m.Figures.BytesSuperseded = w.superseded(readBack)
	if text, err = m.Encode(); err != nil {
		return err
	}
	if _, err := image.DecodeManifest(text); err != nil {
		return fmt.Errorf("the manifest does not read back as it was written and is not published: %w", err)
	}
	return w.target.Commit(text)
}

// forget drops what the Writer knows of the blocks that were put, once the indexes have it.
func (w *Writer) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records.Forget()
	w.table = nil
}

// tail is what ends a shard: the index and the footer.
type tail struct {
	bytes []byte // as written
	size  int64  // of the whole shard
}

// writeTails writes the indexes and footers and finishes all shards, all at once.
func (w *Writer) writeTails(indexes []*ondisk.Index) ([]tail, error) {
	compress, err := codec.New("zstd", 0)
	if err != nil {
		return nil, err
	}
	tails, errs := make([]tail, len(w.shards)), make([]error, len(w.shards))
	var all sync.WaitGroup
	for i, t := range w.shards {
		all.Go(func() { tails[i], errs[i] = t.finish(indexes[i], compress, w.id) })
	}
	all.Wait()
	for _, t := range tails {
		w.stored.Add(int64(len(t.bytes)))
	}
	return tails, errors.Join(errs...)
}

func (t *shard) finish(x *ondisk.Index, compress codec.Codec, id [16]byte) (tail, error) {
	raw := x.Encode()
	if len(raw) > ondisk.MaxIndex {
		return tail{}, fmt.Errorf("the index of %s would have %d bytes, and may have %d: use more shards", image.ShardName(t.no), len(raw), ondisk.MaxIndex)
	}
	stored, ok, err := compress.Compress(nil, raw)
	if err != nil {
		return tail{}, err
	}
	if !ok {
		stored = raw // lengths that are equal say that it is not compressed
	}
	f := ondisk.Footer{Shard: uint32(t.no), IndexOffset: uint64(t.off), IndexStored: uint64(len(stored)), IndexRaw: uint64(len(raw)), IndexSum: xxh3.Hash(stored), ID: ondisk.ShortID(id)}
	end := tail{bytes: append(slices.Clip(stored), f.Encode()...)}
	end.size = t.off + int64(len(end.bytes))
	if _, err := t.w.Write(end.bytes); err != nil {
		return tail{}, err
	}
	return end, t.w.Finish()
}

// describe fills in what the manifest says of the shards and the ancestors.
func (w *Writer) describe(m *image.Manifest, tails []tail, format int, origins []image.Origin) {
	m.Parent, m.Origins = "", origins
	if w.parent != nil {
		m.Parent = hex.EncodeToString(w.records.ParentID[:])
		if w.insteadOf {
			m.Parent = w.parent.Manifest().Parent
		}
	}
	m.Format, m.ID, m.Host.PageSize, m.Codec = format, hex.EncodeToString(w.id[:]), image.PageSize, w.codec.Name()
	m.Figures.BytesRaw, m.Figures.BytesStored = w.raw.Load(), 0
	m.Shards = nil
	for i, t := range tails {
		m.Shards = append(m.Shards, image.Shard{Name: image.ShardName(i), Size: t.size, Digest: image.HexSum(xxh3.Hash(t.bytes))})
		m.Figures.BytesStored += t.size
	}
}
