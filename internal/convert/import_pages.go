package convert

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"stasis/internal/image"
)

// zeros is memory that is zero.
type zeros struct{}

func (zeros) readPages(p []byte, _ int64) error { clear(p); return nil }

// job is pages for one block.
type job struct {
	pid   int
	parts []stretch
	bytes int64
}

// writeBlocks stores the pages that Stasis keeps itself, by several workers.
func (i *importing) writeBlocks() error {
	group, ctx := errgroup.WithContext(i.ctx)
	jobs := make(chan job)
	group.Go(func() error {
		defer close(jobs)
		for _, plan := range i.plans {
			if err := eachJob(plan, func(j job) error {
				select {
				case jobs <- j:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}); err != nil {
				return err
			}
		}
		return nil
	})
	for range max(i.options.Workers, 1) {
		group.Go(func() error {
			data := make([]byte, image.MaxBlock)
			for j := range jobs {
				if err := i.writeBlock(j, data); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// eachJob parts the pages of a plan into blocks.
func eachJob(plan *plan, visit func(job) error) error {
	j := job{pid: plan.pid}
	for _, s := range plan.ours {
		for s.pages > 0 {
			n := min(s.pages, uint64(image.MaxBlock-j.bytes)/pageSize)
			part := s.part(s.start, s.start+n*pageSize)
			j.parts = append(j.parts, part)
			j.bytes += part.bytes()
			s.start, s.pages, s.at = part.end(), s.pages-n, s.at+part.bytes()
			if j.bytes == image.MaxBlock {
				if err := visit(j); err != nil {
					return err
				}
				j = job{pid: plan.pid}
			}
		}
	}
	if j.bytes == 0 {
		return nil
	}
	return visit(j)
}

func (i *importing) writeBlock(j job, data []byte) error {
	b := image.PageBlock{PID: j.pid, Data: data[:j.bytes]}
	at := int64(0)
	for _, part := range j.parts {
		if err := part.in.readPages(data[at:at+part.bytes()], part.at); err != nil {
			return fmt.Errorf("memory %#x of process %d: %w", part.start, j.pid, err)
		}
		b.Extents = append(b.Extents, image.Extent{Addr: part.start, Pages: uint32(part.pages)})
		at += part.bytes()
	}
	i.meter.add(j.bytes)
	return i.writer.PutPages(0, b)
}

// pagesReader reads pages one after the other, as CRIU's images have them.
type pagesReader struct {
	ctx   context.Context
	rest  []stretch // the first perhaps in part
	done  int64     // bytes of the first
	meter *meter    // may be nil
}

var _ io.Reader = (*pagesReader)(nil)

func (r *pagesReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	for len(r.rest) > 0 && r.done == r.rest[0].bytes() {
		r.rest, r.done = r.rest[1:], 0
	}
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	s := r.rest[0]
	n := min(int64(len(p)), s.bytes()-r.done)
	if err := s.in.readPages(p[:n], s.at+r.done); err != nil {
		return 0, err
	}
	r.done += n
	if r.meter != nil {
		r.meter.add(n)
	}
	return int(n), nil
}
