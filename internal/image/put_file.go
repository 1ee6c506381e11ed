package image

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
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
	if cap(s.packed) < MaxBlock+unit {
		s.packed = make([]byte, 0, MaxBlock+unit)
	}
	buf, old := s.packed[:MaxBlock], w.oldPieces(name)
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
	w.records.files[number].Size = int64(off)
	return nil
}

// oldPieces returns the pieces of the parent's file of that name.
func (w *Writer) oldPieces(name string) []filePiece {
	if w.parent == nil || w.noCompare {
		return nil
	}
	i := slices.IndexFunc(w.parent.files, func(f FileInfo) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return w.parent.filePieces[i]
}

// putPiece stores a piece of a file, or refers to the parent's if that is equal.
func (w *Writer) putPiece(s *scratch, number uint32, old []filePiece, off uint64, data []byte) error {
	at, found := slices.BinarySearchFunc(old, int64(off), func(p filePiece, off int64) int { return cmp.Compare(p.where, off) })
	if found && int(old[at].raw) == len(data) {
		was, err := w.parent.readPayload(&old[at].block, &s.file, false)
		if err != nil {
			w.unreadFiles.Add(1)
			w.unreadable.add(err)
		}
		if err == nil && bytes.Equal(was, data) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.records.fileRefs = append(w.records.fileRefs, fileRef{number, &old[at]})
			return nil
		}
	}
	_, err := w.put(s, blockHead{kind: fileBlock, owner: number, fileOff: off}, data, off)
	return err
}

func (w *Writer) addFile(name string) (uint32, error) {
	if err := checkFileName(name); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.usableLocked(); err != nil {
		return 0, err
	}
	for _, f := range w.records.files {
		if f.Name == name {
			return 0, fmt.Errorf("CRIU's image %s is in the checkpoint already", name)
		}
	}
	w.records.files = append(w.records.files, FileInfo{Name: name})
	return uint32(len(w.records.files) - 1), nil
}
