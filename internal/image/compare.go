package image

import "bytes"

// compare finds the pages that are as the parent has them. The bytes are compared, so what is referred to is equal whatever the
// tracker said; the parent's block is read and checked for that. Neighbours are mostly in one block, which is read once.
func (w *Writer) compare(s *scratch, b PageBlock) error {
	if w.parent == nil || w.noCompare {
		return nil
	}
	for i := range s.fates {
		f := &s.fates[i]
		if f.kind != kept {
			continue
		}
		block, page, kind := w.parent.Find(b.PID, s.pages[i]*PageSize)
		if kind != Data {
			continue
		}
		old, err := s.old.read(w.parent, block)
		if err != nil {
			return err
		}
		if bytes.Equal(b.content(i), old[page*PageSize:(page+1)*PageSize]) {
			f.kind, f.at = elsewhere, pageAt{uint32(block), inParent, uint8(page)}
		}
	}
	return nil
}
