package criu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/stats"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/proc"
)

// Numbers of CRIU's image format (criu/include/magic.h, image.h).
const (
	magicCommon  = 0x54564319
	magicService = 0x55105940
	magicPagemap = 0x56084025

	maxEntry = 64 << 20 // no entry of an image is larger than that

	madvWipeOnFork = 1 << unix.MADV_WIPEONFORK

	pagePresent = 1 << 2 // PE_PRESENT
	pageLazy    = 1 << 1 // PE_LAZY
)

// Process is one process of a dumped tree, by its pid inside.
type Process struct {
	PID, PPID, PGID, SID int
	Threads              []int
}

// Processes lists the processes of a dump, as pstree.img has them.
func Processes(dir string) ([]Process, error) {
	var list []Process
	err := readEntries(filepath.Join(dir, "pstree.img"), func(raw []byte) error {
		var e pstree.PstreeEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		p := Process{PID: int(e.GetPid()), PPID: int(e.GetPpid()), PGID: int(e.GetPgid()), SID: int(e.GetSid())}
		for _, tid := range e.GetThreads() {
			p.Threads = append(p.Threads, int(tid))
		}
		list = append(list, p)
		return nil
	})
	return list, err
}

// FrozenTime is how long CRIU kept the tree frozen in a dump that has ended, by
// its own clock; 0 if CRIU left no statistics.
func FrozenTime(dir string) time.Duration {
	var took time.Duration
	_ = readEntries(filepath.Join(dir, "stats-dump"), func(raw []byte) error {
		var e stats.StatsEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		took = time.Duration(e.GetDump().GetFrozenTime()) * time.Microsecond
		return nil
	})
	return took
}

// ErrTorn says that CRIU has read a list of mappings while it changed: one of them
// is there alone, and as a part of what it has been joined with. The kernel hands
// the list out in pieces. Frozen processes change nothing, but the end of a
// userfaultfd, of a tracker that was killed or of another program, joins the
// mappings that it had watched. CRIU cannot restore such images.
var ErrTorn = errors.New("its mappings were joined while CRIU read the list of them")

// LazyRanges lists the memory of a dumped process that may be hidden, joined and
// in address order: what CRIU would restore lazily, without the stacks and what is
// wiped on fork, which capture.Eligible leaves to CRIU as well. The error is
// [ErrTorn] where the mappings overlap.
func LazyRanges(dir string, pid int) ([]proc.Range, error) {
	var ranges []proc.Range
	err := readEntries(filepath.Join(dir, "mm-"+strconv.Itoa(pid)+".img"), func(raw []byte) error {
		var e mm.MmEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		end := uint64(0)
		for _, area := range e.GetVmas() {
			if isGuard(area) {
				continue // pages of what is listed already
			}
			if area.GetStart() < end {
				return fmt.Errorf("%w: %#x-%#x comes behind one that ends at %#x", ErrTorn, area.GetStart(), area.GetEnd(), end)
			}
			end = area.GetEnd()
			if !lazy(area) || area.GetFlags()&unix.MAP_GROWSDOWN != 0 || area.GetMadv()&madvWipeOnFork != 0 {
				continue
			}
			r := proc.Range{Start: area.GetStart(), End: area.GetEnd()}
			if n := len(ranges); n > 0 && ranges[n-1].End == r.Start {
				ranges[n-1].End = r.End
				continue
			}
			ranges = append(ranges, r)
		}
		return nil
	})
	return ranges, err
}

func lazy(e *vma.VmaEntry) bool {
	flags, status := e.GetFlags(), e.GetStatus()
	return flags&unix.MAP_ANONYMOUS != 0 && flags&unix.MAP_PRIVATE != 0 && flags&unix.MAP_LOCKED == 0 &&
		flags&unix.MAP_HUGETLB == 0 && status&(AreaVDSO|AreaVsyscall|AreaVVAR) == 0
}

// PagemapImage is the name of the page map of a process, which a zombie lacks.
func PagemapImage(pid int) string { return "pagemap-" + strconv.Itoa(pid) + ".img" }

// DropLazy makes the page map of a process one of what CRIU dumped itself, for a
// restore in which the rest comes from Stasis: that is left out, and what CRIU
// has becomes plain, because in a lazy restore it would skip what it marked lazy.
// It needs no entries for memory that comes later: what it can be asked for
// follows from the mappings.
func DropLazy(dir string, pid int) error {
	path := filepath.Join(dir, PagemapImage(pid))
	var head []byte
	var entries []*pagemap.PagemapEntry
	changed := false
	err := readEntries(path, func(raw []byte) error {
		if head == nil {
			head = slices.Clone(raw)
			return nil
		}
		e := &pagemap.PagemapEntry{}
		if err := proto.Unmarshal(raw, e); err != nil {
			return err
		}
		changed = changed || e.GetFlags()&pageLazy != 0 || e.GetFlags()&pagePresent == 0
		if e.GetFlags()&pagePresent != 0 {
			e.Flags = proto.Uint32(e.GetFlags() &^ pageLazy)
			entries = append(entries, e)
		}
		return nil
	})
	if err != nil || !changed {
		return err
	}
	return writePagemap(path, head, entries)
}

func entryRange(e *pagemap.PagemapEntry) proc.Range {
	pages := e.GetNrPages()
	if e.NrPages == nil {
		pages = uint64(e.GetCompatNrPages())
	}
	return proc.Range{Start: e.GetVaddr(), End: e.GetVaddr() + pages*proc.PageSize}
}

func writePagemap(path string, head []byte, entries []*pagemap.PagemapEntry) error {
	var out bytes.Buffer
	if err := encodePagemap(&out, head, entries); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func encodePagemap(out *bytes.Buffer, head []byte, entries []*pagemap.PagemapEntry) error {
	word := func(v uint32) { out.Write(binary.LittleEndian.AppendUint32(nil, v)) }
	word(magicCommon)
	word(magicPagemap)
	word(uint32(len(head)))
	out.Write(head)
	for _, e := range entries {
		raw, err := proto.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode a page map: %w", err)
		}
		word(uint32(len(raw)))
		out.Write(raw)
	}
	return nil
}

// readEntries visits the raw entries of an image. The images can come from
// anywhere, so every length is checked before it is used.
func readEntries(path string, visit func(raw []byte) error) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read CRIU's image: %w", err)
	}
	if err := decodeEntries(data, visit); err != nil {
		return fmt.Errorf("CRIU's image %s is damaged: %w", path, err)
	}
	return nil
}

func decodeEntries(data []byte, visit func(raw []byte) error) error {
	r := bytes.NewReader(data)
	word := func() (v uint32, err error) {
		err = binary.Read(r, binary.LittleEndian, &v)
		return v, err
	}
	magic, err := word()
	if err != nil {
		return errors.New("it is shorter than its head")
	}
	if magic == magicCommon || magic == magicService {
		if _, err := word(); err != nil {
			return errors.New("it is shorter than its head")
		}
	}
	for {
		size, err := word()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil || int64(size) > int64(r.Len()) || size > maxEntry {
			return fmt.Errorf("an entry at byte %d does not fit", int64(len(data))-int64(r.Len()))
		}
		raw := make([]byte, size)
		if _, err := io.ReadFull(r, raw); err != nil {
			return err
		}
		if err := visit(raw); err != nil {
			return err
		}
	}
}

// StateFiles lists the images that a dump left in a folder, without logs and
// statistics.
func StateFiles(dir string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list CRIU's images: %w", err)
	}
	var names []string
	for _, file := range all {
		if name := file.Name(); file.Type().IsRegular() && strings.HasSuffix(name, ".img") {
			names = append(names, name)
		}
	}
	return names, nil
}
