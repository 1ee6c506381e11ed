package reader

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"stasis/internal/image/delta"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/tables"
)

// maxDamages is how many errors Verify collects before it stops.
const maxDamages = 20

// Verify reads and checks every block that the checkpoint needs, those of its ancestors among them, with that many workers.
// progress, which may be nil, is told
// how many bytes of how many were read; its calls may come from several goroutines and out of order. All damage that is found,
// up to 20 places, is in the error, each a *DamageError (errors.Join). Headers and indexes were checked by Open; blocks that
// later rounds superseded are not looked at.
func (c *Checkpoint) Verify(ctx context.Context, workers int, progress func(done, total int64)) error {
	all := c.AllBlocks()
	done := atomic.Int64{}
	total, _ := c.Wanted()
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
			if err := c.verify(all[i].Block, &b); err != nil {
				mu.Lock()
				errs = append(errs, err)
				enough.Store(len(errs) >= maxDamages)
				mu.Unlock()
			}
			if n := done.Add(all[i].Len()); progress != nil {
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

// verify reads and checks a block. What a block of differences differs from is in the list on its own.
func (c *Checkpoint) verify(k *tables.Block, b *Buffer) error {
	payload, err := c.ReadPayload(k, b, k.Kind != ondisk.KindDifferences)
	if err != nil || k.Kind != ondisk.KindDifferences {
		return err
	}
	if err := new(delta.Pages).Parse(payload, int(k.Pages)); err != nil {
		return c.BlockDamage(k, "a block there can't be used", err)
	}
	return nil
}
