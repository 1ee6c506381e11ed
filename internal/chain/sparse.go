package chain

import (
	"context"
	"errors"
	"math/bits"
	"path/filepath"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// A block is given back as a whole or not at all, as its checksum covers all of it. A program that writes here and there leaves in every
// block of an ancestor something that the top still needs. A thorough deduplication writes the top anew, with these remains in it.

// blockAt names a block of a chain, as the index of one checkpoint does.
type blockAt struct {
	origin, shard int
	offset        int64
}

// sparse is what a checkpoint would leave behind in its ancestors if it took over what it needs in part.
type sparse struct {
	blocks map[blockAt]bool // whose pages it would take over
	needs  needs            // what it would still need of others
	gain   int64            // bytes of shards that nobody would need any more
	cost   int64            // about how many bytes it would have to write for that
}

// findSparse chooses the blocks of ancestors of which e needs three quarters at most, and nobody else needs anything: others has what
// those need. Pages that are the base of a difference can't be taken over.
func findSparse(e *entry, others needs, o *Options) (*sparse, error) {
	folder, err := store.OpenData(e.dir)
	if err != nil {
		return nil, err
	}
	c, err := openAny(folder, e.dir, o.Roots)
	if err != nil {
		return nil, err
	}
	direct, pages := map[blockAt]uint64{}, map[blockAt]int{}
	for i := range c.Blocks() {
		b := c.Block(i)
		at := blockAt{b.Origin, b.Shard, b.Offset}
		if b.Origin == 0 || b.Delta {
			continue
		}
		pages[at] = b.Raw / image.PageSize
		for _, p := range b.Pieces {
			direct[at] |= (1<<p.Pages - 1) << p.First
		}
	}
	s := &sparse{blocks: map[blockAt]bool{}, needs: needs{}}
	for _, u := range c.Uses() {
		if u.Origin == 0 || u.File { // files are written anew in any case
			continue
		}
		at := blockAt{u.Origin, u.Shard, u.Offset}
		shard, part := shardOf{c.Manifest().Origins[u.Origin-1].ID, u.Shard}, span{u.Offset, u.Offset + u.Len}
		needed := bits.OnesCount64(u.Pages)
		if u.Pages == direct[at] && needed*4 <= pages[at]*3 && outside([]span{part}, others[shard]) == u.Len {
			s.blocks[at] = true
			s.gain += u.Len
			s.cost += u.Len * int64(needed) / int64(pages[at])
			continue
		}
		s.needs[shard] = append(s.needs[shard], part)
	}
	s.needs.settle()
	return s, c.Close()
}

// takeOver writes the checkpoint e anew, with the pages of those blocks in it, and puts it in the place of the old one. What the old one
// has as differences stays where it is. It returns what that gave back, less what it took.
func (s *sparse) takeOver(ctx context.Context, f *forest, e *entry, l *Lock, o *Options) (freed int64, err error) {
	err = f.replace(e, l, o, func(beside string) error {
		old, err := Open(e.dir, o.Roots...)
		if err != nil {
			return err
		}
		defer old.Close()
		m := *old.Manifest()
		compress, err := codec.New(m.Codec, 0)
		if err != nil {
			return err
		}
		target, err := store.CreateFolder(beside)
		if err != nil {
			return err
		}
		// It has an id of its own, of which its ancestors elsewhere have to know.
		w, err := writer.New(f.noting(target, e), writer.Options{
			Shards: len(m.Shards), Codec: compress, ID: newID(), Parent: old, ParentPath: filepath.Join("..", filepath.Base(beside)),
			InsteadOf: true, NoCompare: true, NoDelta: true,
		})
		if err != nil {
			return err
		}
		want := func(b image.BlockInfo) bool {
			return b.Origin == 0 && !b.Delta || s.blocks[blockAt{b.Origin, b.Shard, b.Offset}]
		}
		m.Shards = nil
		if err := o.step("write "+beside, func() error { return copyAll(ctx, old, old, w, want, &m, nil) }); err != nil {
			return errors.Join(err, w.Abort())
		}
		return verifyNew(ctx, beside, o.Roots)
	})
	if err != nil {
		return 0, &notAnewError{e.item(), err}
	}
	r, err := removeMoved(besideName(e), l, o)
	if err != nil {
		return 0, err
	}
	return r.Freed - folderSpace(e.dir), nil
}

// noting is [Lock.Noting] for another form of the checkpoint e in its place.
func (f *forest) noting(t store.Target, e *entry) store.Target {
	ancestors := &Lock{}
	for _, a := range f.ancestors(e) {
		ancestors.dirs = append(ancestors.dirs, a.dir)
	}
	return ancestors.Noting(t, e.dir)
}
