package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/criu"
	"stasis/internal/proc"
)

// maxProcesses bounds the processes of an import.
const maxProcesses = 1 << 20

// state is what the images of a dump say of its processes, as far as an import looks at it.
type state struct {
	inventory *inventory.InventoryEntry
	processes []*process // parents before children, the root first
	byPID     map[int]*process
	files     map[uint32]*fdinfo.FileEntry // by id
}

// process is one process of a dump.
type process struct {
	criu.Process
	core  *criu_core.CoreEntry
	ids   *criu_core.TaskKobjIdsEntry // nil: not known
	mm    *mm.MmEntry                 // nil: a zombie, which has no memory
	fds   []*fdinfo.FdinfoEntry
	space []stretch // all its pages, in order
}

// message is a pointer to a protobuf message.
type message[T any] interface {
	*T
	proto.Message
}

// decodeImage reads all entries of an image of state.
func decodeImage[T any, P message[T]](dir, name string, magic uint32) ([]P, error) {
	text, err := readImage(dir, name, maxState)
	if err != nil {
		return nil, err
	}
	var list []P
	err = criu.Entries(text, magic, func(raw []byte) error {
		e := P(new(T))
		if err := proto.Unmarshal(raw, e); err != nil {
			return err
		}
		list = append(list, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("CRIU's image %s in %s is damaged: %w", name, dir, err)
	}
	return list, nil
}

// decodeFirst reads an image of one entry.
func decodeFirst[T any, P message[T]](dir, name string, magic uint32) (P, error) {
	list, err := decodeImage[T, P](dir, name, magic)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("CRIU's image %s in %s is damaged: it is empty", name, dir)
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// optional makes an image that is not there no error.
func optional[T any](value T, err error) (T, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return value, nil
	}
	return value, err
}

// readState reads the state of a dump in a folder.
func readState(dir string) (*state, error) {
	s := &state{byPID: map[int]*process{}, files: map[uint32]*fdinfo.FileEntry{}}
	var err error
	if s.inventory, err = decodeFirst[inventory.InventoryEntry](dir, inventoryImage, criu.MagicInventory); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s holds no images of CRIU: it has no %s", dir, inventoryImage)
		}
		return nil, err
	}
	tree, err := decodeImage[pstree.PstreeEntry](dir, "pstree.img", criu.MagicPstree)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s has no pstree.img: it is a pre-dump, which has memory only, or its dump failed: import the dump that was made on top of it", dir)
	case err != nil:
		return nil, err
	case len(tree) == 0 || len(tree) > maxProcesses:
		return nil, fmt.Errorf("CRIU's image pstree.img in %s is damaged: it has %d processes", dir, len(tree))
	}
	for _, e := range tree {
		if err := s.addProcess(dir, e); err != nil {
			return nil, err
		}
	}
	return s, s.readFiles(dir)
}

func (s *state) addProcess(dir string, e *pstree.PstreeEntry) error {
	p := &process{Process: criu.Process{PID: int(e.GetPid()), PPID: int(e.GetPpid()), PGID: int(e.GetPgid()), SID: int(e.GetSid())}}
	for _, tid := range e.GetThreads() {
		p.Threads = append(p.Threads, int(tid))
	}
	_, hasParent := s.byPID[p.PPID]
	switch {
	case p.PID <= 0 || p.PID > 1<<30:
		return fmt.Errorf("CRIU's image pstree.img in %s is damaged: %d is no pid", dir, p.PID)
	case s.byPID[p.PID] != nil:
		return fmt.Errorf("CRIU's image pstree.img in %s is damaged: process %d is there twice", dir, p.PID)
	case len(s.processes) > 0 && !hasParent:
		return fmt.Errorf("CRIU's image pstree.img in %s is damaged: process %d comes before its parent %d", dir, p.PID, p.PPID)
	}
	var err error
	pid := strconv.Itoa(p.PID)
	if p.core, err = decodeFirst[criu_core.CoreEntry](dir, "core-"+pid+".img", criu.MagicCore); err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	if p.ids, err = optional(decodeFirst[criu_core.TaskKobjIdsEntry](dir, "ids-"+pid+".img", criu.MagicIDs)); err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	if p.ids == nil {
		p.ids = p.core.GetIds()
	}
	if p.mm, err = optional(decodeFirst[mm.MmEntry](dir, "mm-"+pid+".img", criu.MagicMM)); err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	if err := p.check(); err != nil {
		return fmt.Errorf("process %d in %s: %w", p.PID, dir, err)
	}
	s.processes = append(s.processes, p)
	s.byPID[p.PID] = p
	return nil
}

// States of a task (criu/include/image.h).
const (
	taskDead    = 2
	taskStopped = 3
)

func (p *process) zombie() bool { return p.core.GetTc().GetTaskState() == taskDead }

// check sees that what the import relies on is there.
func (p *process) check() error {
	if p.core.GetTc() == nil {
		return errors.New("its core image is that of a thread")
	}
	if p.mm == nil {
		if !p.zombie() {
			return fmt.Errorf("mm-%d.img is missing: the folder is not a whole dump", p.PID)
		}
		return nil
	}
	end := uint64(0)
	for _, a := range p.mm.GetVmas() {
		if a.GetStatus()&criu.AreaGuard != 0 {
			continue // it lies in a mapping, and says nothing of where pages are
		}
		if a.GetStart()%pageSize != 0 || a.GetEnd()%pageSize != 0 || a.GetStart() < end || a.GetEnd() <= a.GetStart() {
			return fmt.Errorf("its mapping %#x-%#x, behind one that ends at %#x, can't be there", a.GetStart(), a.GetEnd(), end)
		}
		end = a.GetEnd()
	}
	return nil
}

// readFiles reads the descriptors of all processes.
func (s *state) readFiles(dir string) error {
	list, err := optional(decodeImage[fdinfo.FileEntry](dir, criu.FilesImage, criu.MagicFiles))
	if err != nil {
		return err
	}
	for _, f := range list {
		s.files[f.GetId()] = f
	}
	tables := map[uint32][]*fdinfo.FdinfoEntry{} // that processes may share
	for _, p := range s.processes {
		if p.ids == nil || p.zombie() {
			continue
		}
		id := p.ids.GetFilesId()
		table, known := tables[id]
		if !known {
			if table, err = optional(decodeImage[fdinfo.FdinfoEntry](dir, fmt.Sprintf("fdinfo-%d.img", id), criu.MagicFdinfo)); err != nil {
				return err
			}
			tables[id] = table
		}
		p.fds = table
	}
	return nil
}

// wipeOnFork is the bit of MADV_WIPEONFORK in CRIU's madvise flags.
const wipeOnFork = 1 << unix.MADV_WIPEONFORK

// lazyable says whether Stasis would keep the memory of a mapping itself: private and anonymous, restored lazily by CRIU, and
// none of the kinds that a dump leaves to CRIU (package capture). A kind that is not known stays with CRIU.
func lazyable(a *vma.VmaEntry) bool {
	flags, status := a.GetFlags(), a.GetStatus()
	return flags&unix.MAP_ANONYMOUS != 0 && flags&unix.MAP_PRIVATE != 0 && flags&(unix.MAP_LOCKED|unix.MAP_HUGETLB|unix.MAP_GROWSDOWN) == 0 &&
		status&criu.AreaAnonPrivate != 0 && status&^(criu.AreaRegular|criu.AreaHeap|criu.AreaAnonPrivate|criu.AreaWork) == 0 && a.GetMadv()&wipeOnFork == 0
}

// lazyableAreas lists the mappings whose memory Stasis would keep, one by one.
func (p *process) lazyableAreas() []proc.Range {
	var list []proc.Range
	for _, a := range p.mm.GetVmas() {
		if lazyable(a) {
			list = append(list, proc.Range{Start: a.GetStart(), End: a.GetEnd()})
		}
	}
	return list
}
