package criu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"

	"stasis/internal/proc"
)

// PageFlags say where the pages of a run are (criu/include/pagemap.h).
type PageFlags uint32

// The flags of a run. A run that is not present and not in the parent is
// nowhere in the folder.
const (
	PageInParent PageFlags = 1 << 0          // PE_PARENT: in the folder that the link "parent" leads to
	PageLazy     PageFlags = pageLazy        // PE_LAZY: a lazy restore leaves it for later
	PagePresent  PageFlags = pagePresent     // PE_PRESENT: in this folder's pages image
	maxAddress             = uint64(1) << 57 // ends the user's part of every address space
)

// PageRun is an entry of a page map: a run of pages of one process, or of one
// segment of shared memory.
type PageRun struct {
	Start uint64 // address of the first page; in shared memory the offset
	Pages uint64
	Flags PageFlags
}

// End is the address behind the last page.
func (r PageRun) End() uint64 { return r.Start + r.Pages*proc.PageSize }

// PagesImage is the name of the image with the content of pages.
func PagesImage(id uint32) string { return fmt.Sprintf("pages-%d.img", id) }

// DecodePagemap reads the content of a page map image: the number of the image
// with the pages, and the runs in the order of their addresses. The pages of
// present runs lie in that image one after the other.
func DecodePagemap(data []byte) (pagesID uint32, runs []PageRun, err error) {
	head, end := false, uint64(0)
	if err := checkMagic(data, magicPagemap); err != nil {
		return 0, nil, err
	}
	err = decodeEntries(data, func(raw []byte) error {
		if !head {
			var h pagemap.PagemapHead
			if err := proto.Unmarshal(raw, &h); err != nil {
				return err
			}
			head, pagesID = true, h.GetPagesId()
			return nil
		}
		var e pagemap.PagemapEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		run := runOf(&e)
		if run.Start%proc.PageSize != 0 || run.Pages == 0 || run.Start < end ||
			run.Start >= maxAddress || run.Pages > (maxAddress-run.Start)/proc.PageSize {
			return fmt.Errorf("its entry for %d pages at %#x can't be there", run.Pages, run.Start)
		}
		end = run.End()
		runs = append(runs, run)
		return nil
	})
	if err == nil && !head {
		err = errors.New("it has no head")
	}
	return pagesID, runs, err
}

// runOf reads an entry as CRIU does: older versions have fewer fields.
func runOf(e *pagemap.PagemapEntry) PageRun {
	run := PageRun{Start: e.GetVaddr(), Pages: e.GetNrPages(), Flags: PageFlags(e.GetFlags())}
	if e.NrPages == nil {
		run.Pages = uint64(e.GetCompatNrPages())
	}
	switch {
	case e.GetInParent():
		run.Flags |= PageInParent
	case e.Flags == nil:
		run.Flags = PagePresent
	}
	return run
}

// EncodePagemap is the inverse of DecodePagemap.
func EncodePagemap(pagesID uint32, runs []PageRun) ([]byte, error) {
	head, err := proto.Marshal(&pagemap.PagemapHead{PagesId: &pagesID})
	if err != nil {
		return nil, fmt.Errorf("encode a page map: %w", err)
	}
	entries := make([]*pagemap.PagemapEntry, 0, len(runs))
	for _, run := range runs {
		for done := uint64(0); done < run.Pages; {
			n := min(run.Pages-done, 1<<30) // one entry also counts its pages in 32 bits
			entries = append(entries, &pagemap.PagemapEntry{
				Vaddr: proto.Uint64(run.Start + done*proc.PageSize), CompatNrPages: proto.Uint32(uint32(n)),
				NrPages: proto.Uint64(n), Flags: proto.Uint32(uint32(run.Flags)),
			})
			done += n
		}
	}
	var out bytes.Buffer
	if err := encodePagemap(&out, head, entries); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// checkMagic sees that an image is of the kind that its name says.
func checkMagic(data []byte, want uint32) error {
	r := bytes.NewReader(data)
	var magic uint32
	if err := binary.Read(r, binary.LittleEndian, &magic); err != nil {
		return errors.New("it is shorter than its head")
	}
	if magic == magicCommon || magic == magicService {
		if err := binary.Read(r, binary.LittleEndian, &magic); err != nil {
			return errors.New("it is shorter than its head")
		}
	}
	if magic != want {
		return fmt.Errorf("it begins with %#x, and images of its kind with %#x", magic, want)
	}
	return nil
}

// Entries visits the raw entries of the content of an image of the given magic
// number. An image can come from anywhere: every length is checked before it is
// used.
func Entries(data []byte, magic uint32, visit func(raw []byte) error) error {
	if err := checkMagic(data, magic); err != nil {
		return err
	}
	return decodeEntries(data, visit)
}

// Magic numbers of images (criu/include/magic.h).
const (
	MagicInventory = 0x58313116
	MagicPstree    = 0x50273030
	MagicCore      = 0x55053847
	MagicIDs       = 0x54432030
	MagicMM        = 0x57492820
	MagicFiles     = 0x56303138
	MagicFdinfo    = 0x56213732
	MagicLocks     = 0x54323616
	MagicCPUInfo   = 0x61404013
)
