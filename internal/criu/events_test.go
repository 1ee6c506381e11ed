package criu

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"google.golang.org/protobuf/proto"
)

func writeImage(t *testing.T, dir, name string, entries ...proto.Message) {
	t.Helper()
	out := binary.LittleEndian.AppendUint32(nil, magicCommon)
	out = binary.LittleEndian.AppendUint32(out, 0x56303138)
	for _, e := range entries {
		raw, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(raw))), raw...)
	}
	if err := os.WriteFile(filepath.Join(dir, name), out, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFiles(t *testing.T, dir string) (list []*fdinfo.FileEntry) {
	t.Helper()
	err := readEntries(filepath.Join(dir, filesImage), func(raw []byte) error {
		e := &fdinfo.FileEntry{}
		list = append(list, e)
		return proto.Unmarshal(raw, e)
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

var nobody = &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}

func eventfdEntry(id uint32, count uint64) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_EVENTFD.Enum(), Id: &id,
		Efd: &eventfd.EventfdFileEntry{Id: &id, Flags: proto.Uint32(2), Fown: nobody, Counter: &count}}
}

func timerEntry(id uint32, flags uint32, ns, every, ticks uint64) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_TIMERFD.Enum(), Id: &id, Tfd: &timerfd.TimerfdEntry{
		Id: &id, Flags: proto.Uint32(2), Fown: nobody, Clockid: proto.Uint32(1), Ticks: &ticks, SettimeFlags: &flags,
		Vsec: proto.Uint64(0), Vnsec: &ns, Isec: proto.Uint64(0), Insec: &every,
	}}
}

func regularEntry(id uint32) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: &id, Reg: &regfile.RegFileEntry{
		Id: &id, Flags: proto.Uint32(0), Pos: proto.Uint64(0), Fown: nobody, Name: proto.String("/a"),
	}}
}

func filesOf(t *testing.T, entries ...*fdinfo.FileEntry) string {
	t.Helper()
	dir, list := t.TempDir(), []proto.Message(nil)
	for _, e := range entries {
		list = append(list, e)
	}
	writeImage(t, dir, filesImage, list...)
	return dir
}

func TestMendTimers(t *testing.T) {
	for name, c := range map[string]struct {
		flags               uint32
		ns, every, ticks    uint64
		wantFlags           uint32
		wantNS, wantOfTicks uint64
	}{
		"not yet":                            {0, 5, 7, 0, 0, 5, 0},
		"a point in time to come":            {timerAbsolute, 5, 0, 0, timerAbsolute, 5, 0},
		"off":                                {0, 0, 0, 0, 0, 0, 0},
		"off, with an interval":              {0, 0, 7, 0, 0, 0, 0},
		"went off once, not read":            {0, 0, 0, 1, 0, 0, 1},
		"periodic, not read":                 {0, 0, 7, 1, 0, 1, 0},
		"periodic, many ticks":               {0, 0, 7, 4, 0, 1, 3},
		"periodic from a point, not read":    {timerAbsolute, 0, 7, 1, 0, 1, 0},
		"a point in time that is over, read": {timerAbsolute, 0, 0, 0, 0, 0, 0},
		"a point in time, not read":          {timerAbsolute | 2, 0, 0, 1, 2, 0, 1},
	} {
		dir := filesOf(t, regularEntry(1), timerEntry(2, c.flags, c.ns, c.every, c.ticks))
		if _, _, err := MendFiles(dir, nil, true); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := readFiles(t, dir)
		if !proto.Equal(got[0], regularEntry(1)) {
			t.Errorf("%s: another file has changed", name)
		}
		if want := timerEntry(2, c.wantFlags, c.wantNS, c.every, c.wantOfTicks); !proto.Equal(got[1], want) {
			t.Errorf("%s: %v, want %v", name, got[1].GetTfd(), want.GetTfd())
		}
	}
}

func TestMendEventfds(t *testing.T) {
	const large = 1 << 40
	plain := []*fdinfo.FileEntry{eventfdEntry(1, 7), regularEntry(2), eventfdEntry(3, counterOfCRIU)}
	dir := filesOf(t, plain...)
	before, _ := os.ReadFile(filepath.Join(dir, filesImage))
	if list, lost, err := MendFiles(dir, nil, true); list != nil || lost != 0 || err != nil {
		t.Errorf("what CRIU can restore: %v, %d, %v", list, lost, err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, filesImage)); !bytes.Equal(before, after) {
		t.Error("an image was written anew with nothing to mend")
	}

	// A large one, and a semaphore: descriptor 9 of process 42.
	dir = filesOf(t, eventfdEntry(1, 7), regularEntry(2), eventfdEntry(3, large), eventfdEntry(4, 3))
	writeImage(t, dir, "ids-42.img", &criu_core.TaskKobjIdsEntry{
		VmId: proto.Uint32(1), FilesId: proto.Uint32(5), FsId: proto.Uint32(1), SighandId: proto.Uint32(1),
	})
	writeImage(t, dir, "fdinfo-5.img",
		&fdinfo.FdinfoEntry{Id: proto.Uint32(2), Flags: proto.Uint32(0), Type: fdinfo.FdTypes_REG.Enum(), Fd: proto.Uint32(8)},
		&fdinfo.FdinfoEntry{Id: proto.Uint32(4), Flags: proto.Uint32(0), Type: fdinfo.FdTypes_EVENTFD.Enum(), Fd: proto.Uint32(9)})
	semaphores := map[int][]int{42: {8, 9}}
	if _, lost, err := MendFiles(dir, semaphores, false); lost != 2 || err != nil {
		t.Errorf("without lists %d are lost, want 2 (%v)", lost, err)
	}
	list, lost, err := MendFiles(dir, semaphores, true)
	if want := []Eventfd{{Count: 7}, {Count: large}, {Count: 3, Semaphore: true}}; !slices.Equal(list, want) || lost != 0 || err != nil {
		t.Errorf("%v, %d, %v; want %v", list, lost, err, want)
	}
	got := readFiles(t, dir)
	for i, want := range []*fdinfo.FileEntry{eventfdEntry(1, 0), regularEntry(2), eventfdEntry(3, 1), eventfdEntry(4, 2)} {
		if !proto.Equal(got[i], want) {
			t.Errorf("entry %d: %v, want %v", i, got[i], want)
		}
	}
}

func TestMendPolicy(t *testing.T) {
	dir := t.TempDir()
	core := func(policy uint32) *criu_core.CoreEntry {
		return &criu_core.CoreEntry{Mtype: criu_core.CoreEntry_X86_64.Enum(), ThreadCore: &criu_core.ThreadCoreEntry{
			FutexRla: proto.Uint64(1), FutexRlaLen: proto.Uint32(24), SchedPolicy: &policy,
		}}
	}
	for _, c := range []struct {
		policy, want uint32
		had          bool
	}{{policyDeadline, 0, true}, {3, 3, false}} {
		writeImage(t, dir, "core-7.img", core(c.policy))
		if had, err := MendPolicy(dir, 7); had != c.had || err != nil {
			t.Errorf("policy %d: %t, %v", c.policy, had, err)
		}
		err := readEntries(filepath.Join(dir, "core-7.img"), func(raw []byte) error {
			e := &criu_core.CoreEntry{}
			if err := proto.Unmarshal(raw, e); err != nil {
				return err
			}
			if !proto.Equal(e, core(c.want)) {
				t.Errorf("policy %d: %v", c.policy, e)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestMendDamage: images can come from anywhere.
func TestMendDamage(t *testing.T) {
	dir := filesOf(t, eventfdEntry(1, 1<<40), timerEntry(2, 1, 0, 7, 1))
	path := filepath.Join(dir, filesImage)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := 8 + 4 + proto.Size(eventfdEntry(1, 1<<40))
	for n := range whole {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := MendFiles(dir, nil, true); err == nil && n != 8 && n != first {
			t.Errorf("an image of %d of %d bytes was taken for whole", n, len(whole))
		}
	}
	if list, lost, err := MendFiles(t.TempDir(), nil, true); list != nil || lost != 0 || err != nil {
		t.Errorf("no image: %v, %d, %v", list, lost, err)
	}
}
