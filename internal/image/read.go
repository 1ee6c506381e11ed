package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sort"

	"stasis/internal/codec"
)

// Buffer is the space that ReadBlock works in. The zero Buffer is ready; it is for one goroutine at a time.
type Buffer struct {
	stored []byte // as in the shard
	raw    []byte // decompressed
	delta  *deltaSpace
	family *familySpace
}

// Blocks is the number of blocks that have pages of the checkpoint. They are numbered from 0 by the process and address of the
// first page that they have.
func (c *Checkpoint) Blocks() int { return c.live }

// Block describes a block.
func (c *Checkpoint) Block(i int) BlockInfo {
	b := &c.blocks[i]
	info := BlockInfo{Origin: int(b.origin), Shard: int(b.shard), Offset: b.off, Stored: int(b.stored), Raw: int(b.pages) * PageSize, Codec: b.codec, Delta: b.kind == deltaBlock}
	info.Pieces = c.Pieces(i, make([]Piece, 0, c.firsts[i+1]-c.firsts[i]))
	return info
}

// Pieces appends a block's pieces to list: for whoever asks for many, one after the other.
func (c *Checkpoint) Pieces(i int, list []Piece) []Piece {
	for _, at := range c.byBlock[c.firsts[i]:c.firsts[i+1]] {
		e := c.extents[at]
		list = append(list, Piece{c.pidOf(int(at)), e.page * PageSize, uint32(e.pages), uint32(e.first)})
	}
	return list
}

// Bytes is the length of the block's pieces, all together. A page that is wanted in two places counts twice.
func (c *Checkpoint) Bytes(i int) int64 {
	pages := int64(0)
	for _, at := range c.byBlock[c.firsts[i]:c.firsts[i+1]] {
		pages += int64(c.extents[at].pages)
	}
	return pages * PageSize
}

// pidOf finds the process that an extent is of.
func (c *Checkpoint) pidOf(at int) int {
	return c.pids[sort.Search(len(c.procs), func(i int) bool { return c.procs[i].to > at })]
}

// ReadBlock reads, checks and decompresses a block; where its pages are stored as differences, it reads what they differ from as
// well. What it returns is valid until b is used again or the checkpoint is closed,
// and may be read-only memory. Anything wrong with the block is a *DamageError. A block that was not compressed may be returned
// right in the page cache, without a copy: see shardFile for what that means for files that are changed meanwhile. System calls
// (UFFDIO_COPY, write) report memory that went away meanwhile as EFAULT.
func (c *Checkpoint) ReadBlock(i int, b *Buffer) ([]byte, error) {
	if k := &c.blocks[i]; k.kind == deltaBlock {
		return c.readDelta(k, b)
	}
	return c.readPayload(&c.blocks[i], b, true)
}

// readPayload reads, checks and decompresses what is in a block: pages, differences, a piece of a file. Without mapped, the
// result is in b.
func (c *Checkpoint) readPayload(k *block, b *Buffer, mapped bool) ([]byte, error) {
	f, err := c.file(k)
	if err != nil {
		return nil, err
	}
	c.count(k.len())
	data, err := k.read(f, b, mapped)
	if err != nil {
		return nil, c.blockDamage(k, "a block there can't be used", err)
	}
	return data, nil
}

// count notes that so much of the shards is about to be read, and keeps what is mapped of them within bounds.
func (c *Checkpoint) count(n int64) {
	if c.used.Add(n) < resident {
		return
	}
	c.used.Store(0)
	for _, f := range c.shards {
		f.letGo()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.ancestors {
		f.letGo()
	}
}

func (b *block) read(f *shardFile, buf *Buffer, mapped bool) (data []byte, err error) {
	defer f.guard(&err)()
	stored, err := f.bytes(b.off, int(b.len()), &buf.stored, mapped)
	if err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	payload, err := b.check(stored)
	if err != nil || b.codec == codec.None {
		return payload, err
	}
	if cap(buf.raw) < int(b.raw) {
		buf.raw = make([]byte, MaxBlock)
	}
	buf.raw = buf.raw[:b.raw]
	if err := codec.Decompress(b.codec, buf.raw, payload); err != nil {
		return nil, fmt.Errorf("decompressing it, although its checksum matches: %w", err)
	}
	return buf.raw, nil
}

// check sees that stored is the block that the index means, and returns its payload. The index's checksum covers the header,
// which has the block's place and lengths; so a good block of another place does not pass.
func (b *block) check(stored []byte) ([]byte, error) {
	sum, payload, err := checkBlock(stored)
	if err != nil {
		return nil, err
	}
	if sum != b.sum || len(payload) != int(b.stored) {
		return nil, errors.New("it is not the block that the index means")
	}
	return payload, nil
}

// blockDamage makes the error for a block, of this checkpoint or an ancestor.
func (c *Checkpoint) blockDamage(k *block, why string, err error) error {
	name := c.src.Name()
	if k.origin > 0 {
		o := c.manifest.Origins[k.origin-1]
		name = fmt.Sprintf("%s (ancestor %s of %s)", o.Path, o.ID, name)
	}
	return newDamage(name, ShardName(int(k.shard)), k.off, why, err)
}

// file returns the shard that a block is in.
func (c *Checkpoint) file(k *block) (*shardFile, error) {
	if k.origin == 0 {
		if c.shards == nil {
			return nil, fmt.Errorf("cannot read from checkpoint %s: it was closed", c.src.Name())
		}
		return c.shards[k.shard], nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := ancestorShard{k.origin, k.shard}
	if f := c.ancestors[at]; f != nil {
		return f, nil
	}
	f, err := c.openAncestor(k)
	if err != nil {
		return nil, err
	}
	if c.ancestors == nil {
		c.ancestors = map[ancestorShard]*shardFile{}
	}
	c.ancestors[at] = f
	return f, nil
}

// openAncestor opens the shard of an ancestor that a block is in. The block's own checksum, which this checkpoint's index knows,
// is what makes sure that it is the right one; the header is looked at for the sake of the message.
func (c *Checkpoint) openAncestor(k *block) (*shardFile, error) {
	origin := c.manifest.Origins[k.origin-1]
	id, err := decodeID(origin.ID)
	if err != nil {
		return nil, err
	}
	if c.resolve == nil {
		return nil, fmt.Errorf("checkpoint %s needs its ancestor %s (%s): open it together with that one", c.src.Name(), origin.ID, origin.Path)
	}
	src, err := c.resolve(id)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s needs its ancestor %s (%s): %w", c.src.Name(), origin.ID, origin.Path, err)
	}
	f, err := src.Open(ShardName(int(k.shard)))
	if err != nil {
		return nil, c.blockDamage(k, "it can't be opened", err)
	}
	b := make([]byte, headerSize)
	_, err = f.ReadAt(b, 0)
	if err == nil {
		var h header
		if h, err = decodeHeader(b); err == nil && (h.id != id || h.shard != uint32(k.shard)) {
			err = fmt.Errorf("it is shard %d of checkpoint %x", h.shard, h.id)
		}
	}
	if err != nil {
		return nil, errors.Join(c.blockDamage(k, "it is not the shard that is wanted", err), f.Close())
	}
	return newAncestorFile(f, len(c.ancestors))
}

// Find says where a page is: in which block, and which page of it. Block and page mean something for Data only.
func (c *Checkpoint) Find(pid int, addr uint64) (block int, page uint32, kind Kind) {
	i, ok := slices.BinarySearch(c.pids, pid)
	if !ok {
		return 0, 0, Absent
	}
	p := &c.procs[i]
	at := addr / PageSize
	extents := c.extents[p.from:p.to]
	if n := sort.Search(len(extents), func(i int) bool { return extents[i].page > at }); n > 0 {
		if e := extents[n-1]; at-e.page < uint64(e.pages) {
			return int(e.block), uint32(e.first) + uint32(at-e.page), Data
		}
	}
	if n := sort.Search(len(p.zeros), func(i int) bool { return p.zeros[i].Start > addr }); n > 0 && addr < p.zeros[n-1].End {
		return 0, 0, Zero
	}
	return 0, 0, Absent
}

// Ranges lists all pages of a process that are in the checkpoint, zero pages among them, sorted and joined.
func (c *Checkpoint) Ranges(pid int) []Range {
	i, ok := slices.BinarySearch(c.pids, pid)
	if !ok {
		return nil
	}
	p := &c.procs[i]
	out := make([]Range, 0, len(p.zeros)+1)
	add := func(r Range) {
		if n := len(out); n > 0 && out[n-1].End == r.Start {
			out[n-1].End = r.End
			return
		}
		out = append(out, r)
	}
	zeros := p.zeros
	for _, e := range c.extents[p.from:p.to] {
		start := e.page * PageSize
		for len(zeros) > 0 && zeros[0].Start < start {
			add(zeros[0])
			zeros = zeros[1:]
		}
		add(Range{start, start + uint64(e.pages)*PageSize})
	}
	for _, z := range zeros {
		add(z)
	}
	return out
}

// ZeroRanges lists the zero pages of a process, sorted and joined.
func (c *Checkpoint) ZeroRanges(pid int) []Range {
	i, ok := slices.BinarySearch(c.pids, pid)
	if !ok {
		return nil
	}
	return slices.Clone(c.procs[i].zeros)
}

// Files lists CRIU's image files in the order in which they were put.
func (c *Checkpoint) Files() []FileInfo { return slices.Clone(c.files) }

// WriteFile writes one of CRIU's image files to w. A name that is not there is fs.ErrNotExist.
func (c *Checkpoint) WriteFile(name string, w io.Writer) error {
	i := slices.IndexFunc(c.files, func(f FileInfo) bool { return f.Name == name })
	if i < 0 {
		return fmt.Errorf("checkpoint %s has no CRIU image %s: %w", c.src.Name(), name, fs.ErrNotExist)
	}
	var b Buffer
	for n := range c.filePieces[i] {
		data, err := c.readPayload(&c.filePieces[i][n].block, &b, false)
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return fmt.Errorf("cannot write CRIU's image %s: %w", name, err)
		}
	}
	return nil
}
