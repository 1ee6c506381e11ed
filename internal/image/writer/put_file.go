package writer

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/image/plan"
	"stasis/internal/image/tables"
)

// PutFile stores one of CRIU's image files. Its name must be new to the checkpoint. Pieces that are as the parent has them, in
// its file of that name, are referred to. The caller closes r.
func (w *Writer) PutFile(name string, r io.Reader) error {
	number, err := w.addFile(name)
	if err != nil {
		return err
	}
	s := w.scratches.Get().(*scratch)
	defer w.scratches.Put(s)
	if cap(s.packed) < image.MaxBlock+ondisk.Unit {
		s.packed = make([]byte, 0, image.MaxBlock+ondisk.Unit)
	}
	buf, old := s.packed[:image.MaxBlock], w.oldPieces(name)
	off := uint64(0)
	for more := true; more; {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			w.raw.Add(int64(n))
			if err := w.putPiece(s, number, old, off, buf[:n]); err != nil {
				return err
			}
			off += uint64(n)
		}
		more = err == nil
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return w.fail(fmt.Errorf("cannot read CRIU's image %s: %w", name, err))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records.Files[number].Size = int64(off)
	return nil
}

// oldPieces returns the pieces of the parent's file of that name.
func (w *Writer) oldPieces(name string) []tables.FileBlock {
	if w.parent == nil || w.noCompare {
		return nil
	}
	i := slices.IndexFunc(w.parent.FileTable, func(f image.FileInfo) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return w.parent.PieceTable[i]
}

// putPiece stores a piece of a file, or refers to the parent's if that is equal.
func (w *Writer) putPiece(s *scratch, number uint32, old []tables.FileBlock, off uint64, data []byte) error {
	at, found := slices.BinarySearchFunc(old, int64(off), func(p tables.FileBlock, off int64) int { return cmp.Compare(p.Where, off) })
	if found && int(old[at].Raw) == len(data) {
		was, err := w.parent.ReadPayload(&old[at].Block, &s.file, false)
		if err != nil {
			w.unreadFiles.Add(1)
			w.unreadable.add(err)
		}
		if err == nil && bytes.Equal(was, data) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.records.FileRefs = append(w.records.FileRefs, plan.FileRef{File: number, Piece: &old[at]})
			return nil
		}
	}
	_, err := w.put(s, ondisk.BlockHead{Kind: ondisk.KindFile, Owner: number, FileOff: off}, data, off)
	return err
}

func (w *Writer) addFile(name string) (uint32, error) {
	if err := ondisk.CheckFileName(name); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usableLocked(); err != nil {
		return 0, err
	}
	for _, f := range w.records.Files {
		if f.Name == name {
			return 0, fmt.Errorf("CRIU's image %s is in the checkpoint already", name)
		}
	}
	w.records.Files = append(w.records.Files, image.FileInfo{Name: name})
	return uint32(len(w.records.Files) - 1), nil
}
