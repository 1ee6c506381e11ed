package image

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"

	"stasis/internal/codec"
	"stasis/internal/store"
)

// Finish completes and publishes the checkpoint. present says which pages of which process are in it: those that were there
// when the tree was frozen. Of every such page the newest round counts; what was captured and is not present is dropped, and a
// page that is present and was never captured is a *MissingError.
//
// m is completed (see Manifest) and becomes the manifest. Before it is published, every shard's index is read back from where it
// was written, where the target can do that, and checked as a reader would. After an error only Abort is left.
func (w *Writer) Finish(present map[int][]Range, m *Manifest) error {
	w.mu.Lock()
	err := w.usableLocked()
	w.ended = true
	w.mu.Unlock()
	if err != nil {
		return err
	}
	indexes, err := w.indexes(present)
	if err != nil {
		return err
	}
	tails, err := w.writeTails(indexes)
	if err != nil {
		return err
	}
	w.describe(m, tails)
	text, err := m.encode()
	if err != nil {
		return err
	}
	readBack, err := w.readBack(text, tails)
	if err != nil {
		return fmt.Errorf("the checkpoint does not read back as it was written and is not published: %w", err)
	}
	// These were summed up from the indexes and must be what a reader sums up.
	m.Figures.BytesMemory, m.Figures.ZeroPages, m.Figures.BytesFiles = readBack.totals()
	m.Figures.BytesSuperseded = w.superseded(readBack)
	if text, err = m.encode(); err != nil {
		return err
	}
	if _, err := decodeManifest(text); err != nil {
		return fmt.Errorf("the manifest does not read back as it was written and is not published: %w", err)
	}
	return w.target.Commit(text)
}

// indexes resolves what was put, and returns the index of each shard. Shard 0's has what belongs to no block.
func (w *Writer) indexes(present map[int][]Range) ([]*index, error) {
	pids := slices.Sorted(maps.Keys(present))
	if len(pids) > maxProcs {
		return nil, fmt.Errorf("a checkpoint can't have %d processes, but %d at most: dump fewer at once", len(pids), maxProcs)
	}
	base := make([]uint32, len(w.shards)) // number of the first block of each shard
	total := 0
	for i, t := range w.shards {
		base[i] = uint32(total)
		total += t.blocks.len()
	}
	if total >= int(zeroBlock) {
		return nil, fmt.Errorf("the checkpoint has %d blocks, more than can be counted: dump fewer processes at once", total)
	}
	claims := w.claims(base)
	resolved := make([][]claim, len(pids))
	counts := make([]uint32, total) // of each block's claims
	for i, pid := range pids {
		want, err := coalesce(present[pid])
		if err != nil {
			return nil, err
		}
		if resolved[i], err = resolve(pid, claims[uint32(pid)], want); err != nil {
			return nil, err
		}
		delete(claims, uint32(pid))
		for _, c := range resolved[i] {
			if c.block != zeroBlock {
				counts[c.block]++
			}
		}
	}
	out := make([]*index, len(w.shards))
	for i, t := range w.shards {
		end := total
		if i+1 < len(base) {
			end = int(base[i+1])
		}
		out[i] = &index{pids: pids, groups: []group{t.live(counts[base[i]:end])}}
	}
	out[0].files = w.files
	out[0].zeros = spread(out, resolved, base, counts)
	return out, nil
}

// claims gathers what was put, by process.
func (w *Writer) claims(base []uint32) map[uint32][]claim {
	sizes := map[uint32]int{}
	for _, t := range w.shards {
		for i := range t.blocks.len() {
			if k := t.blocks.at(i); k.kind == pageBlock {
				sizes[k.owner] += int(k.extents)
			}
		}
	}
	for i := range w.zeros.len() {
		sizes[w.zeros.at(i).pid]++
	}
	out := make(map[uint32][]claim, len(sizes))
	for pid, n := range sizes {
		out[pid] = make([]claim, 0, n)
	}
	for s, t := range w.shards {
		for i := range t.blocks.len() {
			k := t.blocks.at(i)
			first, claims := uint32(0), out[k.owner]
			for e := range uint32(k.extents) {
				p := *t.extents.at(int(k.extent + e))
				claims = append(claims, claim{p.page(), uint64(p.pages()), k.order, base[s] + uint32(i), first})
				first += p.pages()
			}
			if k.kind == pageBlock {
				out[k.owner] = claims
			}
		}
	}
	for i := range w.zeros.len() {
		z := w.zeros.at(i)
		out[z.pid] = append(out[z.pid], claim{z.page, z.pages, z.order, zeroBlock, 0})
	}
	return out
}

// live returns the shard's blocks that have claims or are of files, with room for their pieces. counts has the number of
// claims of each block.
func (t *shard) live(counts []uint32) group {
	g := group{shard: uint32(t.no)}
	pieces := 0
	for i := range t.blocks.len() {
		k := t.blocks.at(i)
		if k.kind == pageBlock && counts[i] == 0 {
			continue
		}
		b := indexBlock{off: int64(k.off), sum: k.sum, stored: k.stored, raw: k.raw, kind: k.kind, codec: k.codec, heads: k.extents}
		if k.kind == pageBlock {
			b.pieces = counts[i]
			pieces += int(counts[i])
		} else {
			b.file, b.where = k.owner, k.order
		}
		g.blocks = append(g.blocks, b)
	}
	g.pieces = make([]indexPiece, pieces)
	return g
}

// spread puts the resolved claims into the pieces of their blocks, and returns the zero ranges. It uses counts up.
func spread(to []*index, resolved [][]claim, base []uint32, counts []uint32) []zeroRange {
	// counts becomes the place of each block's next piece within the pieces of its shard.
	for s := range to {
		end := len(counts)
		if s+1 < len(base) {
			end = int(base[s+1])
		}
		place := uint32(0)
		for i := int(base[s]); i < end; i++ {
			counts[i], place = place, place+counts[i]
		}
	}
	var zeros []zeroRange
	for proc, claims := range resolved {
		for _, c := range claims {
			if c.block == zeroBlock {
				zeros = append(zeros, zeroRange{uint32(proc), c.page, c.pages})
				continue
			}
			// The shard is the last that begins at or before the block; empty shards share their beginning with the next.
			s, _ := slices.BinarySearchFunc(base, c.block, func(b, block uint32) int {
				if b <= block {
					return -1
				}
				return 1
			})
			to[s-1].groups[0].pieces[counts[c.block]] = indexPiece{uint32(proc), c.page, uint32(c.pages), c.first}
			counts[c.block]++
		}
	}
	return zeros
}

// tail is what ends a shard: the index and the footer.
type tail struct {
	bytes []byte // as written
	size  int64  // of the whole shard
}

// writeTails writes the indexes and footers and finishes all shards, all at once.
func (w *Writer) writeTails(indexes []*index) ([]tail, error) {
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

func (t *shard) finish(x *index, compress codec.Codec, id [16]byte) (tail, error) {
	raw := x.encode()
	if len(raw) > maxIndex {
		return tail{}, fmt.Errorf("the index of %s would have %d bytes, and may have %d: use more shards", ShardName(t.no), len(raw), maxIndex)
	}
	stored, ok, err := compress.Compress(nil, raw)
	if err != nil {
		return tail{}, err
	}
	if !ok {
		stored = raw // lengths that are equal say that it is not compressed
	}
	f := footer{uint32(t.no), uint64(t.off), uint64(len(stored)), uint64(len(raw)), xxh3.Hash(stored), shortID(id)}
	end := tail{bytes: append(slices.Clip(stored), f.encode()...)}
	end.size = t.off + int64(len(end.bytes))
	if _, err := t.w.Write(end.bytes); err != nil {
		return tail{}, err
	}
	return end, t.w.Finish()
}

// describe fills in what the manifest says of the shards.
func (w *Writer) describe(m *Manifest, tails []tail) {
	m.Format, m.ID, m.Host.PageSize, m.Codec = FormatVersion, hex.EncodeToString(w.id[:]), PageSize, w.codec.Name()
	m.Figures.BytesRaw, m.Figures.BytesStored = w.raw.Load(), 0
	m.Shards = nil
	for i, t := range tails {
		m.Shards = append(m.Shards, Shard{ShardName(i), t.size, hexSum(xxh3.Hash(t.bytes))})
		m.Figures.BytesStored += t.size
	}
}

// readBack opens what was written as a reader will, so that nothing is published that can't be opened.
func (w *Writer) readBack(manifest []byte, tails []tail) (*Checkpoint, error) {
	src := &written{manifest: manifest, w: w, tails: tails}
	return Open(src)
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
		if ShardName(i) == name {
			f := &writtenFile{head: header{uint32(i), uint32(len(s.w.shards)), s.w.id}, tail: s.tails[i]}
			f.back, _ = t.w.(store.Rereader)
			return f, nil
		}
	}
	return nil, fmt.Errorf("there is no shard %s", name)
}

// writtenFile has the beginning and the end of a shard, which is all that Open reads.
type writtenFile struct {
	back store.Rereader // nil: from memory
	head header
	tail tail
}

func (f *writtenFile) Size() int64  { return f.tail.size }
func (f *writtenFile) Fd() uintptr  { return noFd }
func (f *writtenFile) Close() error { return nil }

func (f *writtenFile) ReadAt(p []byte, off int64) (int, error) {
	if f.back != nil {
		return f.back.ReadAt(p, off)
	}
	from := f.head.encode()
	if begin := f.tail.size - int64(len(f.tail.bytes)); off >= begin {
		from, off = f.tail.bytes, off-begin
	}
	if off+int64(len(p)) > int64(len(from)) {
		return 0, errors.New("that part of the shard is not in memory any more")
	}
	return copy(p, from[off:]), nil
}

// superseded sums up the blocks that were written and are not in c.
func (w *Writer) superseded(c *Checkpoint) int64 {
	total := w.stored.Load() - c.wanted()
	for i := range w.shards {
		total -= headerSize + c.tails[i]
	}
	return total
}
