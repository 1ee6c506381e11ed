package image

import "bytes"

// compare finds the pages that are as the parent has them, or differ from those a little. The bytes are compared, so what is
// referred to is equal whatever the tracker said; the parent's block is read and checked for that. Neighbours are mostly in one
// block, which is read once.
func (w *Writer) compare(s *scratch, b PageBlock) error {
	if w.parent == nil || w.noCompare {
		return nil
	}
	s.delta.reset()
	s.bases = s.bases[:0]
	for i := range s.fates {
		f := &s.fates[i]
		if f.kind != kept {
			continue
		}
		block, page, kind := w.parent.Find(b.PID, s.pages[i]*PageSize)
		if kind != Data {
			continue
		}
		if err := w.parent.page(block, uint8(page), &s.old, &s.oldPage); err != nil {
			return err
		}
		if bytes.Equal(b.content(i), s.oldPage.content) {
			f.kind, f.at = elsewhere, pageAt{uint32(block), inParent, uint8(page)}
		} else if !w.noDelta {
			s.differ(f, b.content(i))
		}
	}
	return nil
}

// differ makes a page a difference from a full page of the parent, where it is small.
func (s *scratch) differ(f *fate, page []byte) {
	full := s.oldPage.full
	runs, ok := diff(s.runs[:0], s.oldPage.base, page)
	s.runs = runs
	switch {
	case !ok:
	case len(runs) == 0: // it has become again what it was some checkpoints ago
		f.kind, f.at = elsewhere, pageAt{full.block, inParent, full.page}
	default:
		f.kind = differs
		s.delta.add(runs, page)
		s.bases = append(s.bases, full)
	}
}

// putDelta writes a block of the pages that are differences, where there are any.
func (w *Writer) putDelta(s *scratch, b PageBlock, order uint64) error {
	if len(s.bases) == 0 {
		return nil
	}
	s.extents = s.extents[:0]
	for i, f := range s.fates {
		if f.kind == differs {
			s.extents = appendPage(s.extents, s.pages[i])
		}
	}
	s.packed = append(append(s.packed[:0], s.delta.numbers...), s.delta.literals...)
	_, err := w.put(s, blockHead{kind: deltaBlock, owner: uint32(b.PID), extents: s.extents}, s.packed, order)
	return err
}
