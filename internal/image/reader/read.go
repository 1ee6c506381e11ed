package reader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/tables"
)

// Buffer is the space that ReadBlock works in. The zero Buffer is ready; it is for one goroutine at a time.
type Buffer struct {
	stored []byte // as in the shard
	raw    []byte // decompressed
	delta  *deltaSpace
	beside *Buffer
	space  []byte
}

// Space returns a second Buffer, and room for at least so many bytes, which stay with b: for whoever puts data together from what is
// read in the two. What is in them is left alone by ReadBlock.
func (b *Buffer) Space(n int) (beside *Buffer, space []byte) {
	if b.beside == nil {
		b.beside = new(Buffer)
	}
	if len(b.space) < n {
		b.space = make([]byte, n)
	}
	return b.beside, b.space
}

// ReadBlock reads, checks and decompresses a block; where its pages are stored as differences, it reads what they differ from as
// well. What it returns is valid until b is used again or the checkpoint is closed,
// and may be read-only memory. Anything wrong with the block is a *DamageError. A block that was not compressed may be returned
// right in the page cache, without a copy: see shardFile for what that means for files that are changed meanwhile. System calls
// (UFFDIO_COPY, write) report memory that went away meanwhile as EFAULT.
func (c *Checkpoint) ReadBlock(i int, b *Buffer) ([]byte, error) {
	if k := &c.BlockTable[i]; k.Kind == ondisk.KindDifferences {
		return c.readDelta(k, b)
	}
	return c.ReadPayload(&c.BlockTable[i], b, true)
}

// ReadPayload reads, checks and decompresses what is in a block: pages, differences, a piece of a file. Without mapped, the
// result is in b.
func (c *Checkpoint) ReadPayload(k *tables.Block, b *Buffer, mapped bool) ([]byte, error) {
	f, err := c.file(k)
	if err != nil {
		return nil, err
	}
	c.count(k.Len())
	data, err := readBlock(k, f, b, mapped)
	if err != nil {
		return nil, c.BlockDamage(k, "a block there can't be used", err)
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

func readBlock(b *tables.Block, f *shardFile, buf *Buffer, mapped bool) (data []byte, err error) {
	defer f.guard(&err)()
	stored, err := f.bytes(b.Off, int(b.Len()), &buf.stored, mapped)
	if err != nil {
		return nil, fmt.Errorf("reading it: %w", err)
	}
	payload, err := checkedPayload(b, stored)
	if err != nil || b.Codec == codec.None {
		return payload, err
	}
	if cap(buf.raw) < int(b.Raw) {
		buf.raw = make([]byte, image.MaxBlock)
	}
	buf.raw = buf.raw[:b.Raw]
	if err := codec.Decompress(b.Codec, buf.raw, payload); err != nil {
		return nil, fmt.Errorf("decompressing it, although its checksum matches: %w", err)
	}
	return buf.raw, nil
}

// checkedPayload sees that stored is the block that the index means, and returns its payload. The index's checksum covers the header,
// which has the block's place and lengths; so a good block of another place does not pass.
func checkedPayload(b *tables.Block, stored []byte) ([]byte, error) {
	sum, payload, err := ondisk.CheckBlock(stored)
	if err != nil {
		return nil, err
	}
	if sum != b.Sum || len(payload) != int(b.Stored) {
		return nil, errors.New("it is not the block that the index means")
	}
	return payload, nil
}

// BlockDamage makes the error for a block, of this checkpoint or an ancestor.
func (c *Checkpoint) BlockDamage(k *tables.Block, why string, err error) error {
	name := c.src.Name()
	if k.Origin > 0 {
		o := c.manifest.Origins[k.Origin-1]
		name = fmt.Sprintf("%s (ancestor %s of %s)", o.Path, o.ID, name)
	}
	return image.NewDamage(name, image.ShardName(int(k.Shard)), k.Off, why, err)
}

// file returns the shard that a block is in.
func (c *Checkpoint) file(k *tables.Block) (*shardFile, error) {
	if k.Origin == 0 {
		if c.shards == nil {
			return nil, fmt.Errorf("cannot read from checkpoint %s: it was closed", c.src.Name())
		}
		return c.shards[k.Shard], nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := tables.AncestorShard{Origin: k.Origin, Shard: k.Shard}
	if f := c.ancestors[at]; f != nil {
		return f, nil
	}
	f, err := c.openAncestor(k)
	if err != nil {
		return nil, err
	}
	if c.ancestors == nil {
		c.ancestors = map[tables.AncestorShard]*shardFile{}
	}
	c.ancestors[at] = f
	return f, nil
}

// openAncestor opens the shard of an ancestor that a block is in. The block's own checksum, which this checkpoint's index knows,
// is what makes sure that it is the right one; the header is looked at for the sake of the message.
func (c *Checkpoint) openAncestor(k *tables.Block) (*shardFile, error) {
	origin := c.manifest.Origins[k.Origin-1]
	id, err := image.ParseID(origin.ID)
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
	f, err := src.Open(image.ShardName(int(k.Shard)))
	if err != nil {
		return nil, c.BlockDamage(k, "it can't be opened", err)
	}
	b := make([]byte, image.ShardHeader)
	_, err = f.ReadAt(b, 0)
	if err == nil {
		var h ondisk.Header
		if h, err = ondisk.DecodeHeader(b); err == nil && (h.ID != id || h.Shard != uint32(k.Shard)) {
			err = fmt.Errorf("it is shard %d of checkpoint %x", h.Shard, h.ID)
		}
	}
	if err != nil {
		return nil, errors.Join(c.BlockDamage(k, "it is not the shard that is wanted", err), f.Close())
	}
	return newAncestorFile(f, len(c.ancestors))
}

// WriteFile writes one of CRIU's image files to w. A name that is not there is fs.ErrNotExist.
func (c *Checkpoint) WriteFile(name string, w io.Writer) error {
	i := slices.IndexFunc(c.FileTable, func(f image.FileInfo) bool { return f.Name == name })
	if i < 0 {
		return fmt.Errorf("checkpoint %s has no CRIU image %s: %w", c.src.Name(), name, fs.ErrNotExist)
	}
	var b Buffer
	for n := range c.PieceTable[i] {
		data, err := c.ReadPayload(&c.PieceTable[i][n].Block, &b, false)
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return fmt.Errorf("cannot write CRIU's image %s: %w", name, err)
		}
	}
	return nil
}

// HeadOf reads whose pages a block has, and the number of each by its address. The block was read, and so checked, before.
func (c *Checkpoint) HeadOf(k *tables.Block, pages *[image.MaxPages]uint64) (pid uint32, err error) {
	f, err := c.file(k)
	if err != nil {
		return 0, err
	}
	defer f.guard(&err)()
	var space []byte
	head, err := f.bytes(k.Off, ondisk.HeadLen(int(k.Heads)), &space, true)
	if err != nil {
		return 0, err
	}
	n := 0
	for i := range int(k.Heads) {
		at := ondisk.BlockSize + i*ondisk.ExtentSize
		page := binary.LittleEndian.Uint64(head[at:]) / image.PageSize
		for range binary.LittleEndian.Uint32(head[at+8:]) {
			if n == len(pages) {
				return 0, ondisk.ErrIndex
			}
			pages[n] = page
			page++
			n++
		}
	}
	return binary.LittleEndian.Uint32(head[16:]), nil
}
