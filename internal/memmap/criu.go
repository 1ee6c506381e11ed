package memmap

import (
	"fmt"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/criu"
	"stasis/internal/image"
)

// area is what a shared mapping shares.
type area struct {
	segment uint64 // CRIU's number of it
	offset  uint64 // of the mapping's first byte in it
}

// readFiles notes the names of all files.
func (r *looker) readFiles() {
	text := r.image(criu.FilesImage)
	if text == nil {
		return
	}
	err := criu.Entries(text, criu.MagicFiles, func(raw []byte) error {
		var e fdinfo.FileEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		if reg := e.GetReg(); reg != nil {
			r.files[e.GetId()] = reg.GetName()
		}
		return nil
	})
	if err != nil {
		r.note(criu.FilesImage, err)
	}
}

// mappings reads those of a process, in the order of their addresses.
func (r *looker) mappings(pid int) []Mapping {
	name := "mm-" + strconv.Itoa(pid) + ".img"
	text := r.image(name)
	if text == nil {
		return nil
	}
	var list []Mapping
	err := criu.Entries(text, criu.MagicMM, func(raw []byte) error {
		var e mm.MmEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		end := uint64(0)
		for _, a := range e.GetVmas() {
			if a.GetStatus()&criu.AreaGuard != 0 {
				continue
			}
			if a.GetStart() < end || a.GetEnd() <= a.GetStart() || (a.GetStart()|a.GetEnd())%image.PageSize != 0 {
				return fmt.Errorf("its mapping at %#x cannot be there", a.GetStart())
			}
			end = a.GetEnd()
			list = append(list, r.mapping(pid, a))
		}
		return nil
	})
	if err != nil {
		r.note(name, err)
		return nil
	}
	return list
}

func (r *looker) mapping(pid int, a *vma.VmaEntry) Mapping {
	m := Mapping{PID: pid, Start: a.GetStart(), End: a.GetEnd(), Kind: kindOf(a), Perms: permsOf(a)}
	switch status := a.GetStatus(); {
	case status&(criu.AreaFilePrivate|criu.AreaFileShared|criu.AreaMemfd) != 0:
		m.File = r.files[uint32(a.GetShmid())] //nolint:gosec // it is a number of a file here
	case status&(criu.AreaAnonShared|criu.AreaSysV) != 0:
		m.area = &area{a.GetShmid(), a.GetPgoff()}
	}
	return m
}

func kindOf(a *vma.VmaEntry) Kind {
	status, flags := a.GetStatus(), a.GetFlags()
	switch {
	case status&(criu.AreaVsyscall|criu.AreaVDSO|criu.AreaVVAR) != 0:
		return Kernel
	case flags&unix.MAP_HUGETLB != 0:
		return Huge
	case status&criu.AreaHeap != 0:
		return Heap
	case status&criu.AreaStack != 0 || flags&unix.MAP_GROWSDOWN != 0:
		return Stack
	case status&(criu.AreaFileShared|criu.AreaAnonShared|criu.AreaSysV) != 0 || flags&unix.MAP_SHARED != 0:
		return Shared
	case status&criu.AreaFilePrivate != 0:
		return File
	}
	return Anonymous
}

func permsOf(a *vma.VmaEntry) string {
	perms := []byte("---p")
	for i, bit := range []uint32{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if a.GetProt()&bit != 0 {
			perms[i] = "rwx"[i]
		}
	}
	if a.GetFlags()&unix.MAP_SHARED != 0 {
		perms[3] = 's'
	}
	return string(perms)
}

// criuPages are those of a process's pages that are in CRIU's images.
func (r *looker) criuPages(pid int) []piece {
	list := r.pagemap(criu.PagemapImage(pid))
	for i := range list {
		list[i].pid = pid
	}
	return list
}

// sharedPages are the pages of the shared memory behind a mapping. They belong to all that map it, and count for the first.
func (r *looker) sharedPages(m *Mapping) []piece {
	if m.area == nil || r.segments[m.area.segment] {
		return nil
	}
	r.segments[m.area.segment] = true
	var list []piece
	first, last := m.area.offset, m.area.offset+(m.End-m.Start)
	for _, p := range r.pagemap(fmt.Sprintf("pagemap-shmem-%d.img", m.area.segment)) {
		p.start, p.end = max(p.start, first), min(p.end, last)
		if p.start < p.end {
			list = append(list, piece{pid: m.PID, start: p.start - first + m.Start, end: p.end - first + m.Start, where: p.where})
		}
	}
	return list
}

// pagemap reads a page map of CRIU's, and looks up where the pages are stored: they lie in their image one after the other.
func (r *looker) pagemap(name string) []piece {
	text := r.image(name)
	if text == nil {
		return nil
	}
	id, runs, err := criu.DecodePagemap(text)
	if err != nil {
		r.note(name, err)
		return nil
	}
	stored := r.checkpoint.FilePieces(criu.PagesImage(id))
	var list []piece
	at := int64(0)
	for _, run := range runs {
		if run.Flags&criu.PagePresent == 0 {
			continue // one of ours, or nowhere
		}
		for addr := run.Start; addr < run.End() && len(stored) > 0; {
			s := stored[0]
			n := min(run.End()-addr, uint64(s.Offset+s.Len-at)) //nolint:gosec // at lies in it
			p := piece{start: addr, end: addr + n}
			switch {
			case s.Origin > 0:
				p.where = unchanged
			case r.checkpoint.Manifest().Parent != "":
				p.where = again
			}
			list = append(list, p)
			addr += n
			if at += int64(n); at == s.Offset+s.Len { //nolint:gosec // positive
				stored = stored[1:]
			}
		}
	}
	return list
}
