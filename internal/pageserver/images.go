package pageserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// sharedName is CRIU's name for the page map of a segment of shared memory.
func sharedName(segment uint64) string { return fmt.Sprintf("pagemap-shmem-%d.img", segment) }

// criuPages are pages that a checkpoint has in CRIU's images: a segment of shared memory, or what CRIU kept of a process. A nil
// *criuPages has none.
type criuPages struct {
	what  string
	runs  []criu.PageRun // present ones, ascending
	at    []int64        // where each begins in pages
	pages *reader.File
}

// openPages opens the pages of a page map, nil where the checkpoint has no such map.
func openPages(c *reader.Checkpoint, mapName string) (*criuPages, error) {
	var text bytes.Buffer
	if err := c.WriteFile(mapName, &text); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	number, runs, err := criu.DecodePagemap(text.Bytes())
	if err != nil {
		return nil, fmt.Errorf("CRIU's image %s: %w", mapName, err)
	}
	p := &criuPages{what: mapName}
	end := int64(0)
	for _, r := range runs {
		if r.Flags&criu.PagePresent == 0 {
			continue
		}
		p.runs, p.at = append(p.runs, r), append(p.at, end)
		end += int64(r.Pages * image.PageSize)
	}
	if len(p.runs) == 0 {
		return nil, nil
	}
	if p.pages, err = c.OpenFile(criu.PagesImage(number)); err != nil {
		return nil, err
	}
	if p.pages.Size() != end {
		return nil, fmt.Errorf("CRIU's image %s has pages of %d bytes, and there are %d: use a good copy", mapName, end, p.pages.Size())
	}
	return p, nil
}

// find returns the number of the run that an address is in.
func (p *criuPages) find(addr uint64) (run int, ok bool) {
	if p == nil {
		return 0, false
	}
	i := sort.Search(len(p.runs), func(i int) bool { return p.runs[i].End() > addr })
	return i, i < len(p.runs) && p.runs[i].Start <= addr
}

// read reads pages of a run.
func (p *criuPages) read(run int, addr uint64, to []byte) error {
	if _, err := p.pages.ReadAt(to, p.at[run]+int64(addr-p.runs[run].Start)); err != nil {
		return fmt.Errorf("read the pages of %s: %w", p.what, err)
	}
	return nil
}

// copyTo copies a range, all of which must be there, to w by way of buf.
func (p *criuPages) copyTo(w io.Writer, r image.Range, buf []byte) error {
	for r.Start < r.End {
		run, ok := p.find(r.Start)
		if !ok {
			return missingHole(r)
		}
		part := buf[:min(r.End-r.Start, p.runs[run].End()-r.Start, uint64(len(buf)))]
		if err := p.read(run, r.Start, part); err != nil {
			return err
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		r.Start += uint64(len(part))
	}
	return nil
}
