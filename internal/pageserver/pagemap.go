package pageserver

import (
	"errors"
	"fmt"
	"io"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"

	"stasis/internal/image"
)

// Numbers of CRIU's image format (criu/include/magic.h).
const (
	magicCommon  = 0x54564319
	magicPagemap = 0x56084025

	// maxEntry bounds an entry of a page map, in bytes. CRIU's have some 30.
	maxEntry = 1 << 10
)

// sharedName is CRIU's name for the page map of a segment of shared memory.
func sharedName(segment uint64) string { return fmt.Sprintf("pagemap-shmem-%d.img", segment) }

// pagesName is CRIU's name for the image of pages of that number.
func pagesName(number uint32) string { return fmt.Sprintf("pages-%d.img", number) }

// mapWriter writes a page map as CRIU has it, joining what touches.
type mapWriter struct {
	to      io.Writer
	pending image.Range // empty: none
}

// begin writes what a page map begins with.
func (w *mapWriter) begin(pages uint32) error {
	b := le.AppendUint32(le.AppendUint32(nil, magicCommon), magicPagemap)
	if _, err := w.to.Write(b); err != nil {
		return err
	}
	return w.entry(&pagemap.PagemapHead{PagesId: proto.Uint32(pages)})
}

func (w *mapWriter) entry(m proto.Message) error {
	raw, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.to.Write(append(le.AppendUint32(nil, uint32(len(raw))), raw...))
	return err
}

// add adds pages that are in the image of pages.
func (w *mapWriter) add(r image.Range) error {
	if w.pending.End == r.Start && w.pending.Len() > 0 {
		w.pending.End = r.End
		return nil
	}
	err := w.flush()
	w.pending = r
	return err
}

func (w *mapWriter) flush() error {
	for r := &w.pending; r.Start < r.End; {
		n := min(r.Len()/image.PageSize, 1<<31) // older versions of CRIU read the field of 32 bits
		e := &pagemap.PagemapEntry{
			Vaddr: proto.Uint64(r.Start), CompatNrPages: proto.Uint32(uint32(n)),
			NrPages: proto.Uint64(n), Flags: proto.Uint32(flagPresent),
		}
		if err := w.entry(e); err != nil {
			return err
		}
		r.Start += n * image.PageSize
	}
	return nil
}

// mapReader reads a page map as CRIU has it. It trusts nothing.
type mapReader struct{ from io.Reader }

var errMap = errors.New("it is no page map of CRIU")

// begin returns the number of the image of pages.
func (r *mapReader) begin() (pages uint32, err error) {
	var magic [8]byte
	if _, err := io.ReadFull(r.from, magic[:]); err != nil || le.Uint32(magic[:]) != magicCommon || le.Uint32(magic[4:]) != magicPagemap {
		return 0, errors.Join(errMap, err)
	}
	var h pagemap.PagemapHead
	if err := r.entry(&h); err != nil {
		return 0, errors.Join(errMap, err)
	}
	return h.GetPagesId(), nil
}

// next returns the next pages that are in the image, io.EOF after the last. Ranges are ascending and never empty.
func (r *mapReader) next(after uint64) (image.Range, error) {
	var e pagemap.PagemapEntry
	if err := r.entry(&e); err != nil {
		return image.Range{}, err
	}
	pages := e.GetNrPages()
	if e.NrPages == nil {
		pages = uint64(e.GetCompatNrPages())
	}
	at, err := head{addr: e.GetVaddr(), pages: pages}.rng()
	if err != nil || pages == 0 || at.Start < after {
		return image.Range{}, fmt.Errorf("%w: it has %d pages at %#x", errMap, pages, e.GetVaddr())
	}
	if e.GetFlags()&flagPresent == 0 && (e.Flags != nil || e.GetInParent()) {
		return image.Range{}, fmt.Errorf("its pages at %#x-%#x are not in it, but in its own parent: import that chain first", at.Start, at.End)
	}
	return at, nil
}

func (r *mapReader) entry(into proto.Message) error {
	var size [4]byte
	switch _, err := io.ReadFull(r.from, size[:]); {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it ends in an entry", errMap)
	case err != nil:
		return err // io.EOF: the end
	}
	n := le.Uint32(size[:])
	if n > maxEntry {
		return fmt.Errorf("%w: an entry of %d bytes", errMap, n)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r.from, raw); err != nil {
		return fmt.Errorf("%w: it ends in an entry", errMap)
	}
	if err := proto.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: %w", errMap, err)
	}
	return nil
}
