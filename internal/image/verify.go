package image

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
)

// maxDamages is how many errors Verify collects before it stops.
const maxDamages = 20

// Verify reads and checks every block that the checkpoint needs, with that many workers. progress, which may be nil, is told
// how many bytes of how many were read; its calls may come from several goroutines and out of order. All damage that is found,
// up to 20 places, is in the error, each a *DamageError (errors.Join). Headers and indexes were checked by Open; blocks that
// later rounds superseded are not looked at.
func (c *Checkpoint) Verify(ctx context.Context, workers int, progress func(done, total int64)) error {
	all := c.allBlocks()
	total, done := c.wanted(), atomic.Int64{}
	var (
		next   atomic.Int64
		mu     sync.Mutex
		errs   []error
		crew   sync.WaitGroup
		enough atomic.Bool
	)
	check := func() {
		var b Buffer
		for !enough.Load() && ctx.Err() == nil {
			i := int(next.Add(1) - 1)
			if i >= len(all) {
				return
			}
			if _, err := c.read(all[i], &b, true); err != nil {
				mu.Lock()
				errs = append(errs, err)
				enough.Store(len(errs) >= maxDamages)
				mu.Unlock()
			}
			if n := done.Add(all[i].len()); progress != nil {
				progress(n, total)
			}
		}
	}
	for range max(workers, 1) {
		crew.Go(check)
	}
	crew.Wait()
	if len(errs) > maxDamages {
		errs = errs[:maxDamages]
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// allBlocks lists the blocks of pages and files in the order in which they lie in their shards.
func (c *Checkpoint) allBlocks() []*block {
	all := make([]*block, 0, len(c.blocks))
	for i := range c.blocks {
		all = append(all, &c.blocks[i])
	}
	for _, pieces := range c.filePieces {
		for i := range pieces {
			all = append(all, &pieces[i].block)
		}
	}
	slices.SortFunc(all, func(a, b *block) int {
		return cmp.Or(cmp.Compare(a.origin, b.origin), cmp.Compare(a.shard, b.shard), cmp.Compare(a.off, b.off))
	})
	return all
}
