package writer

import (
	"fmt"
	"slices"

	"github.com/zeebo/xxh3"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/plan"
)

// PutPages stores pages of one process as they were in a round. Of a page that was put more than once, the newest round
// counts, and within a round the last call. Zero pages are stored as such; of a page that is as the parent has it, or that is
// equal to another one of this checkpoint, it is only noted where it is; one that differs from the parent's a little is stored
// as that difference. b.Data may be used again when it returns.
func (w *Writer) PutPages(round int, b image.PageBlock) error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := checkPutBlock(&b, round); err != nil {
		return err
	}
	w.raw.Add(int64(len(b.Data)))
	order := plan.Stamp(round, w.order.Add(1))
	s := w.scratches.Get().(*scratch)
	defer w.scratches.Put(s)
	s.begin(b)
	if err := w.compare(s, b, order); err != nil {
		return err
	}
	w.share(s, b)
	at, err := w.putKept(s, b, order)
	if err != nil {
		return err
	}
	w.noteFates(s, b, order, at)
	return nil
}

// fate is what becomes of a page that is put.
type fate struct {
	kind fateKind
	at   plan.PageAt // elsewhere: where
	twin uint8       // twin: which page of the same call it is equal to
	hash xxh3.Uint128
}

type fateKind uint8

const (
	kept      fateKind = iota // it goes into the block of this call
	zeroed                    // it is zero
	elsewhere                 // a block that is written already has it
	twin                      // it is equal to an earlier one of the same call
	differs                   // it is stored as a difference from a page of the parent
)

// begin notes where the pages of b belong and which of them are zero.
func (s *scratch) begin(b image.PageBlock) {
	s.fates, s.pages = s.fates[:0], s.pages[:0]
	zero := zeroPages(b.Data)
	for _, e := range b.Extents {
		for n := range uint64(e.Pages) {
			f := fate{}
			if zero>>len(s.pages)&1 != 0 {
				f.kind = zeroed
			}
			s.fates, s.pages = append(s.fates, f), append(s.pages, e.Addr/image.PageSize+n)
		}
	}
}

// content is the i-th page of a block.
func content(b *image.PageBlock, i int) []byte {
	return b.Data[i*image.PageSize : (i+1)*image.PageSize]
}

// putKept writes a block of the pages that are kept, where there are any, and says where their first one is.
func (w *Writer) putKept(s *scratch, b image.PageBlock, order uint64) (plan.PageAt, error) {
	extents, data := b.Extents, b.Data
	if slices.ContainsFunc(s.fates, func(f fate) bool { return f.kind != kept }) {
		s.extents, s.packed = s.extents[:0], s.packed[:0]
		for i, f := range s.fates {
			if f.kind == kept {
				s.extents = image.AppendPage(s.extents, s.pages[i])
				s.packed = append(s.packed, content(&b, i)...)
			}
		}
		extents, data = s.extents, s.packed
	}
	if len(data) == 0 {
		return plan.PageAt{}, nil
	}
	return w.put(s, ondisk.BlockHead{Kind: ondisk.KindPages, Owner: uint32(b.PID), Extents: extents}, data, order)
}

// noteFates remembers what became of the pages that are in no block of this call, and, for later calls, where those are that
// went into the block that begins at the page at.
func (w *Writer) noteFates(s *scratch, b image.PageBlock, order uint64, at plan.PageAt) {
	next := at
	for i := range s.fates {
		switch f := &s.fates[i]; f.kind {
		case kept:
			f.at = next
			next = next.After(1)
		case twin:
			f.at = s.fates[f.twin].at
		}
	}
	w.table.add(s.fates)
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 0; i < len(s.fates); {
		f, n := &s.fates[i], 1
		for i+n < len(s.fates) && s.pages[i+n] == s.pages[i]+uint64(n) && f.goesOn(&s.fates[i+n], n) {
			n++
		}
		switch f.kind {
		case zeroed:
			w.records.Zeros.Add(plan.ZeroRec{Order: order, Page: s.pages[i], Pages: uint64(n), PID: uint32(b.PID)})
		case elsewhere, twin:
			w.records.Refs.Add(plan.RefRec{Order: order, Page: s.pages[i], PID: uint32(b.PID), At: f.at, Pages: uint8(n)})
		}
		i += n
	}
}

// goesOn says whether the page n pages later is noted together with this one.
func (f *fate) goesOn(later *fate, n int) bool {
	switch f.kind {
	case zeroed:
		return later.kind == zeroed
	case elsewhere, twin:
		return (later.kind == elsewhere || later.kind == twin) && later.at == f.at.After(uint8(n))
	}
	return false
}

// PutZero notes ranges of a process whose pages are known to be zero in a round, without anybody having read them.
func (w *Writer) PutZero(round, pid int, ranges []image.Range) error {
	if err := w.usable(); err != nil {
		return err
	}
	if err := checkPut(round, pid); err != nil {
		return err
	}
	order := plan.Stamp(round, w.order.Add(1))
	for _, r := range ranges {
		if err := r.Check(); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range ranges {
		w.records.Zeros.Add(plan.ZeroRec{Order: order, Page: r.Start / image.PageSize, Pages: r.Len() / image.PageSize, PID: uint32(pid)})
	}
	return nil
}

// maxRound bounds the number of a round, so that it fits beside the number of a block.
const maxRound = 1<<20 - 1

func checkPut(round, pid int) error {
	if round < 0 || round > maxRound {
		return fmt.Errorf("there is no round %d: rounds are 0 to %d", round, maxRound)
	}
	if pid <= 0 || int64(pid) > 1<<31-1 {
		return fmt.Errorf("%d is no pid", pid)
	}
	return nil
}

func checkPutBlock(b *image.PageBlock, round int) error {
	if err := checkPut(round, b.PID); err != nil {
		return err
	}
	pages := uint64(0)
	for _, e := range b.Extents {
		if err := e.Check(); err != nil {
			return fmt.Errorf("process %d: %w", b.PID, err)
		}
		pages += uint64(e.Pages)
	}
	if len(b.Data) == 0 || len(b.Data) > image.MaxBlock || uint64(len(b.Data)) != pages*image.PageSize {
		return fmt.Errorf("a block of process %d has %d bytes for %d pages: it must have %d for each, and at most %d",
			b.PID, len(b.Data), pages, image.PageSize, image.MaxBlock)
	}
	return nil
}
