package writer

import (
	"bytes"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/delta"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/plan"
	"stasis/internal/image/tables"
)

// compare finds the pages that are as the parent has them, and stores those that differ from that a little as differences. The
// bytes are compared, so what is referred to is equal whatever the tracker said; the parent's block is read and checked for that.
// Neighbours are mostly in one block, which is read once. What can't be read is not compared with: see Lost. Where that gave nothing for a while, few pages are compared: see worth.
func (w *Writer) compare(s *scratch, b image.PageBlock, order uint64) error {
	if w.parent == nil || w.noCompare {
		return nil
	}
	s.delta.Reset()
	for i := range s.fates {
		f := &s.fates[i]
		if f.kind != kept {
			continue
		}
		block, page, kind := w.parent.Find(b.PID, s.pages[i]*image.PageSize)
		if kind != image.Data || !w.worth.try(b.PID, s.pages[i], block) || w.unreadable.has(uint32(block)) {
			continue
		}
		if err := w.parent.ReadPage(block, uint8(page), &s.old, &s.oldPage); err != nil {
			w.unread(block, &s.oldPage, err)
			continue
		}
		if bytes.Equal(content(&b, i), s.oldPage.Content) {
			f.kind, f.at = elsewhere, plan.PageAt{Block: uint32(block), Home: plan.InParent, Page: uint8(page)}
			w.worth.gained(b.PID, s.pages[i], afterEqual)
			continue
		}
		if !w.noDelta {
			if err := w.differ(s, b, i, order); err != nil {
				return err
			}
		}
		if f.kind == kept {
			w.worth.lost(b.PID, s.pages[i])
		} else {
			w.worth.gained(b.PID, s.pages[i], afterDelta)
		}
	}
	return w.putDelta(s, b.PID, order)
}

// differ makes the i-th page a difference from a full page of the parent, where it is small.
func (w *Writer) differ(s *scratch, b image.PageBlock, i int, order uint64) error {
	f, full := &s.fates[i], s.oldPage.Full
	runs, ok := delta.Diff(s.runs[:0], s.oldPage.Base, content(&b, i), w.deltaLimit(&w.parent.BlockTable[full.Block]))
	s.runs = runs
	if !ok {
		return nil
	}
	if len(runs) == 0 { // it has become again what it was some checkpoints ago
		f.kind, f.at = elsewhere, plan.PageAt{Block: full.Block, Home: plan.InParent, Page: full.Page}
		return nil
	}
	if s.delta.Full(full) {
		if err := w.putDelta(s, b.PID, order); err != nil {
			return err
		}
	}
	f.kind = differs
	s.delta.Add(s.pages[i], full, runs, content(&b, i))
	return nil
}

// putDelta writes a block of the differences that were collected, where there are any.
func (w *Writer) putDelta(s *scratch, pid int, order uint64) error {
	if len(s.delta.Bases) == 0 {
		return nil
	}
	s.packed = s.delta.AppendPayload(s.packed[:0])
	_, err := w.put(s, ondisk.BlockHead{Kind: ondisk.KindDifferences, Owner: uint32(pid), Extents: s.delta.Extents}, s.packed, order)
	s.delta.Reset()
	return err
}

// maxDelta is the most that a difference may take, in bytes before compression. What is larger is stored as a page: pages compress
// as well. With heaps whose pages compress to 1100 bytes (Zstandard) or 1500 (LZ4), differences of just this size compressed to
// 950 and 1250.
const maxDelta = image.PageSize / 2

// deltaLimit is the most that a difference from a page of that block may take: what saves less than a quarter of the page, compressed
// as the block of its base is, is not worth having that block read, now and by each restore. Where the two were compressed by
// different codecs, or not at all, nothing is known of that.
func (w *Writer) deltaLimit(from *tables.Block) int {
	if from.Codec != w.codec.ID() || from.Codec == codec.None {
		return maxDelta
	}
	return min(maxDelta, int(uint64(from.Stored)*image.PageSize/uint64(from.Raw))*3/4)
}
