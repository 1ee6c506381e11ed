package reader

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/tables"
	"stasis/internal/store"
)

// NoFd is what File.Fd returns where there is no descriptor.
const NoFd = ^uintptr(0)

// Checkpoint is a checkpoint open for reading. All its methods but Close may be called from any number of goroutines.
type Checkpoint struct {
	src      store.Source
	manifest *image.Manifest
	id       [16]byte
	tails    []int64 // length of index and footer of each shard

	*tables.Tables // what is in it and where

	ready  chan struct{} // closed when the tables of memory are there; nil where open failed
	memory error         // written before that

	shards    []*shardFile
	used      atomic.Int64 // bytes of shards that were read since the mappings were last let go
	resolve   Resolver     // may be nil
	mu        sync.Mutex
	ancestors map[tables.AncestorShard]*shardFile // guarded by mu: those that were needed so far
}

// Resolver finds the ancestor of that id, for a checkpoint whose index refers to blocks of it.
type Resolver func(id [16]byte) (store.Source, error)

// Open reads a checkpoint's manifest and indexes and checks them; blocks are checked when they are read. Anything wrong is a
// *DamageError, or a *VersionError. The caller closes the checkpoint.
func Open(src store.Source) (*Checkpoint, error) { return OpenChain(src, nil) }

// OpenChain is Open for a checkpoint that may refer to blocks of its ancestors, which resolve finds when they are needed.
func OpenChain(src store.Source, resolve Resolver) (*Checkpoint, error) {
	m, err := image.ReadManifest(src)
	if err != nil {
		return nil, err
	}
	return OpenWith(src, m, resolve)
}

// OpenWith is OpenChain for whoever has read the manifest already, with ReadManifest: in a long chain it is the largest of what a
// reader needs at once.
func OpenWith(src store.Source, m *image.Manifest, resolve Resolver) (*Checkpoint, error) {
	c, err := OpenEarly(src, m, resolve)
	if err != nil {
		return nil, err
	}
	if err := c.Ready(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// OpenEarly is OpenWith for whoever wants CRIU's images before memory. It returns when the indexes are read and checked, and what
// grows with memory is made of them meanwhile: before [Checkpoint.Ready] has returned nil only Manifest, PIDs, Files, OpenFile,
// WriteFile and FilePieces may be called.
func OpenEarly(src store.Source, m *image.Manifest, resolve Resolver) (*Checkpoint, error) {
	c := &Checkpoint{src: src, manifest: m, resolve: resolve}
	c.Tables = tables.New(m.Format, func(shard int, why string) error { return c.damage(shard, c.indexAt(shard), why, nil) })
	indexes, err := c.open()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.ready = make(chan struct{})
	go func() {
		defer close(c.ready)
		c.memory = c.AddMemory(indexes)
	}()
	return c, nil
}

// Ready waits until everything may be called. Its error says that the indexes cannot be right: the checkpoint is of no use then.
func (c *Checkpoint) Ready() error {
	<-c.ready
	return c.memory
}

// open opens the shards and reads their indexes.
func (c *Checkpoint) open() ([]*ondisk.Index, error) {
	var err error
	if c.id, err = image.ParseID(c.manifest.ID); err != nil {
		return nil, err
	}
	n := len(c.manifest.Shards)
	c.shards = make([]*shardFile, n)
	c.tails = make([]int64, n)
	indexes, errs := make([]*ondisk.Index, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { indexes[i], errs[i] = c.openShard(i) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return indexes, c.AddFiles(indexes)
}

// indexAt is where the index of a shard begins.
func (c *Checkpoint) indexAt(shard int) int64 { return c.manifest.Shards[shard].Size - c.tails[shard] }

// damage makes the error for a shard of this checkpoint.
func (c *Checkpoint) damage(shard int, offset int64, why string, err error) error {
	return image.NewDamage(c.src.Name(), image.ShardName(shard), offset, why, err)
}

// openShard opens a shard, checks its two ends, and reads its index.
func (c *Checkpoint) openShard(i int) (*ondisk.Index, error) {
	want := c.manifest.Shards[i]
	f, err := c.src.Open(want.Name)
	if err != nil {
		return nil, c.cannotOpen(i, err)
	}
	c.shards[i] = newShardFile(f)
	if err := c.checkHeader(i, f); err != nil {
		return nil, err
	}
	size := f.Size()
	if size != want.Size {
		return nil, c.damage(i, min(size, want.Size), fmt.Sprintf("it has %d bytes instead of %d", size, want.Size), nil)
	}
	end := make([]byte, image.ShardFooter)
	if _, err := f.ReadAt(end, size-image.ShardFooter); err != nil {
		return nil, c.damage(i, size-image.ShardFooter, "it can't be read", err)
	}
	foot, err := ondisk.DecodeFooter(end, size)
	if err == nil && (foot.Shard != uint32(i) || foot.ID != ondisk.ShortID(c.id)) {
		err = errors.New("its footer is from another shard")
	}
	if err != nil {
		return nil, c.damage(i, size-image.ShardFooter, err.Error(), nil)
	}
	x, err := c.readIndex(f, foot, want.Digest)
	if err != nil {
		return nil, c.damage(i, int64(foot.IndexOffset), err.Error(), nil)
	}
	c.tails[i] = size - int64(foot.IndexOffset)
	return x, nil
}

// cannotOpen tells a shard that is not as it was from one that only we can't open.
func (c *Checkpoint) cannotOpen(shard int, err error) error {
	for _, ours := range []error{fs.ErrPermission, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, ours) {
			return fmt.Errorf("cannot read checkpoint %s: %w", c.src.Name(), err)
		}
	}
	return c.damage(shard, 0, "it can't be opened", err)
}

// checkHeader sees that f is the shard that it should be.
func (c *Checkpoint) checkHeader(i int, f store.File) error {
	b := make([]byte, image.ShardHeader)
	if _, err := f.ReadAt(b, 0); err != nil {
		return c.damage(i, 0, fmt.Sprintf("it has only %d bytes or can't be read", f.Size()), err)
	}
	h, err := ondisk.DecodeHeader(b)
	switch {
	case err != nil:
		return c.damage(i, 0, err.Error(), nil)
	case h.ID != c.id:
		return c.damage(i, 0, fmt.Sprintf("it is from another checkpoint, %x", h.ID), nil)
	case h.Shard != uint32(i):
		return c.damage(i, 0, fmt.Sprintf("it is %s of this checkpoint under a wrong name", image.ShardName(int(h.Shard))), nil)
	case h.Shards != uint32(len(c.manifest.Shards)):
		return c.damage(i, 0, fmt.Sprintf("it is one of %d shards, and the manifest lists %d", h.Shards, len(c.manifest.Shards)), nil)
	}
	return nil
}

func (c *Checkpoint) readIndex(f store.File, foot ondisk.Footer, digest string) (*ondisk.Index, error) {
	b := make([]byte, foot.IndexStored+image.ShardFooter)
	if _, err := f.ReadAt(b, int64(foot.IndexOffset)); err != nil {
		return nil, fmt.Errorf("its index can't be read: %w", err)
	}
	if image.HexSum(xxh3.Hash(b)) != digest {
		return nil, errors.New("its index does not match the manifest's digest")
	}
	b = b[:foot.IndexStored]
	if xxh3.Hash(b) != foot.IndexSum {
		return nil, errors.New("its index does not match its checksum")
	}
	if foot.IndexStored != foot.IndexRaw {
		raw := make([]byte, foot.IndexRaw)
		if err := codec.Decompress(codec.Zstd, raw, b); err != nil {
			return nil, fmt.Errorf("%w: %w", ondisk.ErrIndex, err)
		}
		b = raw
	}
	x, err := ondisk.DecodeBlocks(b)
	if err != nil {
		return nil, err
	}
	return x, c.checkGroups(x, foot)
}

// checkGroups sees that the blocks of an index lie where they can.
func (c *Checkpoint) checkGroups(x *ondisk.Index, foot ondisk.Footer) error {
	for i := range x.Groups {
		g := &x.Groups[i]
		if int(g.Origin) > len(c.manifest.Origins) {
			return fmt.Errorf("%w: it refers to an ancestor that the manifest does not list", ondisk.ErrIndex)
		}
		if g.Origin > 0 {
			continue
		}
		end := int64(image.ShardHeader)
		if n := len(g.Blocks); n > 0 {
			end = g.Blocks[n-1].Off + g.Blocks[n-1].Len()
		}
		if g.Shard != foot.Shard || uint64(end) > foot.IndexOffset || len(g.Blocks) > 0 && g.Blocks[0].Off < image.ShardHeader {
			return fmt.Errorf("%w: it refers to blocks outside its shard", ondisk.ErrIndex)
		}
	}
	return nil
}

// Close closes the shards. What ReadBlock returned must not be used any more, and no other method may be running.
func (c *Checkpoint) Close() error {
	if c.ready != nil {
		<-c.ready
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, f := range c.shards {
		if f != nil { // some are nil where Open failed
			errs = append(errs, f.Close())
		}
	}
	for _, f := range c.ancestors {
		errs = append(errs, f.Close())
	}
	c.shards, c.ancestors = nil, nil
	return errors.Join(errs...)
}

// ID is the checkpoint's id.
func (c *Checkpoint) ID() [16]byte { return c.id }

// TailSize is the length of the index and the footer of a shard.
func (c *Checkpoint) TailSize(shard int) int64 { return c.tails[shard] }

// Manifest returns the checkpoint's manifest, which is shared and must not be changed.
func (c *Checkpoint) Manifest() *image.Manifest { return c.manifest }
