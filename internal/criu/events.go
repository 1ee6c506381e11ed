package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"google.golang.org/protobuf/proto"
)

const (
	filesImage     = "files.img"
	timerAbsolute  = 1         // TFD_TIMER_ABSTIME
	policyDeadline = 6         // SCHED_DEADLINE
	counterOfCRIU  = 1<<32 - 1 // the largest that CRIU restores
)

// Eventfd is what CRIU cannot restore of an eventfd.
type Eventfd struct {
	Count     uint64
	Semaphore bool
}

// MendFiles changes what CRIU's images have of event descriptors so that a
// restore gives what was dumped. semaphores are the descriptors of eventfds that
// are semaphores, by the pid inside.
//
//   - A periodic timerfd whose tick was not read has no time left, which CRIU
//     would set as "off". It gets a nanosecond.
//   - A timerfd set to a point in time that is over has no time left either, and
//     CRIU would take that for now. It becomes one that is off.
//   - CRIU makes eventfds of 32 bits and no semaphores. Where one needs more, the
//     counter of each becomes its place in the returned list, which [Arm] hands
//     to CRIU. With lists false that is left out; what is lost then is counted.
func MendFiles(dir string, semaphores map[int][]int, lists bool) (eventfds []Eventfd, lost int, err error) {
	path := filepath.Join(dir, filesImage)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil // images of an old CRIU, in many files
	}
	isSemaphore, err := fileIDs(dir, semaphores)
	if err != nil {
		return nil, 0, err
	}
	m := mender{isSemaphore: isSemaphore}
	if err := readEntries(path, m.look); err != nil {
		return nil, 0, err
	}
	switch {
	case m.beyond > 0 && lists && len(m.eventfds) <= maxEventfds:
		m.byPlace = true
		eventfds = m.eventfds
	default:
		lost = m.beyond
	}
	if !m.byPlace && !m.timers {
		return nil, lost, nil
	}
	return eventfds, lost, rewriteEntries(path, m.mend)
}

// mender goes through the files twice: once to look what is to do, once to do it.
type mender struct {
	isSemaphore map[uint32]bool // by CRIU's id of the file
	eventfds    []Eventfd       // all, in their order
	beyond      int             // those that CRIU cannot restore
	timers      bool            // a timerfd has to be mended
	byPlace     bool            // eventfds get their place for a counter
	place       uint64          // of the next
}

func (m *mender) look(raw []byte) error {
	entry, err := eventEntry(raw)
	if entry == nil || err != nil {
		return err
	}
	if timer := entry.GetTfd(); timer != nil {
		m.timers = m.timers || mendTimer(timer)
	}
	if e := entry.GetEfd(); e != nil {
		known := Eventfd{Count: e.GetCounter(), Semaphore: m.isSemaphore[entry.GetId()]}
		m.eventfds = append(m.eventfds, known)
		if known.Semaphore || known.Count > counterOfCRIU {
			m.beyond++
		}
	}
	return nil
}

func (m *mender) mend(raw []byte) ([]byte, error) {
	entry, err := eventEntry(raw)
	if entry == nil || err != nil {
		return raw, err
	}
	changed := entry.GetTfd() != nil && mendTimer(entry.GetTfd())
	if e := entry.GetEfd(); e != nil && m.byPlace {
		e.Counter = proto.Uint64(m.place)
		m.place++
		changed = true
	}
	if !changed {
		return raw, nil
	}
	return proto.Marshal(entry)
}

// eventEntry decodes an entry of files.img; nil for those of other kinds. CRIU
// writes the kind first, which spares decoding all the others.
func eventEntry(raw []byte) (*fdinfo.FileEntry, error) {
	const kindTag = 1 << 3
	if len(raw) > 1 && raw[0] == kindTag && raw[1] != byte(fdinfo.FdTypes_EVENTFD) && raw[1] != byte(fdinfo.FdTypes_TIMERFD) {
		return nil, nil
	}
	entry := &fdinfo.FileEntry{}
	if err := proto.Unmarshal(raw, entry); err != nil {
		return nil, err
	}
	return entry, nil
}

// mendTimer says whether it changed something.
func mendTimer(t *timerfd.TimerfdEntry) bool {
	if t.GetVsec() != 0 || t.GetVnsec() != 0 {
		return false
	}
	switch periodic := t.GetIsec() != 0 || t.GetInsec() != 0; {
	case periodic && t.GetTicks() > 0:
		t.Vnsec = proto.Uint64(1)
		t.SettimeFlags = proto.Uint32(t.GetSettimeFlags() &^ timerAbsolute)
		// It counts one more when it goes off, in a nanosecond.
		t.Ticks = proto.Uint64(t.GetTicks() - 1)
		return true
	case t.GetSettimeFlags()&timerAbsolute != 0:
		t.SettimeFlags = proto.Uint32(t.GetSettimeFlags() &^ timerAbsolute)
		return true
	}
	return false
}

// fileIDs finds CRIU's ids of files by processes and descriptors.
func fileIDs(dir string, descriptors map[int][]int) (map[uint32]bool, error) {
	ids := make(map[uint32]bool)
	for pid, fds := range descriptors {
		if len(fds) == 0 {
			continue
		}
		table, err := descriptorTable(dir, pid)
		if err != nil {
			return nil, err
		}
		wanted := make(map[uint32]bool, len(fds))
		for _, fd := range fds {
			wanted[uint32(fd)] = true
		}
		err = readEntries(filepath.Join(dir, table), func(raw []byte) error {
			var e fdinfo.FdinfoEntry
			if err := proto.Unmarshal(raw, &e); err != nil {
				return err
			}
			if wanted[e.GetFd()] && e.GetType() == fdinfo.FdTypes_EVENTFD {
				ids[e.GetId()] = true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// descriptorTable is the image with the descriptors of a process, which it may
// share with others.
func descriptorTable(dir string, pid int) (name string, err error) {
	err = readEntries(filepath.Join(dir, "ids-"+strconv.Itoa(pid)+".img"), func(raw []byte) error {
		var e criu_core.TaskKobjIdsEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		name = fmt.Sprintf("fdinfo-%d.img", e.GetFilesId())
		return nil
	})
	if err == nil && name == "" {
		err = fmt.Errorf("CRIU's image ids-%d.img is damaged: it is empty", pid)
	}
	return name, err
}

// MendPolicy gives a thread of policy SCHED_DEADLINE, which CRIU dumps and does
// not restore, the usual one: it gets its own later. It says whether the thread
// had it.
func MendPolicy(dir string, tid int) (had bool, err error) {
	path := filepath.Join(dir, fmt.Sprintf("core-%d.img", tid))
	err = rewriteEntries(path, func(raw []byte) ([]byte, error) {
		var e criu_core.CoreEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return nil, err
		}
		if e.GetThreadCore().GetSchedPolicy() != policyDeadline {
			return raw, nil
		}
		had = true
		e.ThreadCore.SchedPolicy = proto.Uint32(0)
		return proto.Marshal(&e)
	})
	return had, err
}

// rewriteEntries changes the entries of an image.
func rewriteEntries(path string, change func(raw []byte) ([]byte, error)) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read CRIU's image: %w", err)
	}
	out := make([]byte, 0, len(data)+64)
	head := 4
	if len(data) >= 4 && binary.LittleEndian.Uint32(data) == magicCommon {
		head = 8
	}
	out = append(out, data[:min(head, len(data))]...)
	err = decodeEntries(data, func(raw []byte) error {
		changed, err := change(raw)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(changed)))
		out = append(out, changed...)
		return err
	})
	if err != nil {
		return fmt.Errorf("CRIU's image %s is damaged: %w", path, err)
	}
	if err := os.WriteFile(path, out, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
