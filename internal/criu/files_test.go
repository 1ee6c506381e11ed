package criu

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	skopts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	skunix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// encodeImage writes an image of CRIU.
func encodeImage(tb testing.TB, entries ...proto.Message) []byte {
	tb.Helper()
	out := binary.LittleEndian.AppendUint32(nil, magicCommon)
	out = binary.LittleEndian.AppendUint32(out, 0x56303138)
	for _, e := range entries {
		raw, err := proto.Marshal(e)
		if err != nil {
			tb.Fatal(err)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(len(raw)))
		out = append(out, raw...)
	}
	return out
}

func regularFile(id uint32, name string, flags uint32, size *uint64, external bool) *fdinfo.FileEntry {
	kind := fdinfo.FdTypes_REG
	owner := &fown.FownEntry{
		Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0),
	}
	return &fdinfo.FileEntry{Type: &kind, Id: &id, Reg: &regfile.RegFileEntry{
		Id: &id, Flags: &flags, Pos: proto.Uint64(0), Fown: owner, Name: &name, Size: size, Ext: &external,
		Mode: proto.Uint32(unix.S_IFREG | 0o644),
	}}
}

func TestFilesLeavesOutWhatCRIUHasItself(t *testing.T) {
	files := encodeImage(t,
		regularFile(1, "/read", unix.O_RDONLY, proto.Uint64(7), false),
		regularFile(2, "/log", unix.O_WRONLY|unix.O_APPEND, nil, false),
		regularFile(3, "/deleted", unix.O_RDWR, proto.Uint64(7), false),
		regularFile(4, "file[1:2]", unix.O_RDONLY, nil, true),
	)
	remaps := encodeImage(t, &remap.RemapFilePathEntry{OrigId: proto.Uint32(3), RemapId: proto.Uint32(1)})
	got, err := Files(files, remaps)
	want := []File{
		{Path: "/read", Mode: unix.S_IFREG | 0o644, Size: 7},
		{Path: "/log", Mode: unix.S_IFREG | 0o644, Size: -1, Writable: true},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := Files(files, nil); err != nil || len(got) != 3 {
		t.Errorf("without an image of remaps: %+v, %v", got, err)
	}
}

func TestGhostsAreTheNamesOfDeletedFiles(t *testing.T) {
	files := encodeImage(t, regularFile(1, "/read", unix.O_RDONLY, nil, false), regularFile(3, "/deleted", unix.O_RDWR, nil, false),
		regularFile(4, "/linked", unix.O_RDWR, nil, false))
	ghost, linked := remap.RemapType_GHOST, remap.RemapType_LINKED
	remaps := encodeImage(t,
		&remap.RemapFilePathEntry{OrigId: proto.Uint32(3), RemapId: proto.Uint32(26), RemapType: &ghost},
		&remap.RemapFilePathEntry{OrigId: proto.Uint32(4), RemapId: proto.Uint32(2), RemapType: &linked},
	)
	if got, err := Ghosts(files, remaps); err != nil || !slices.Equal(got, []string{"/deleted.cr.1a.ghost"}) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := Ghosts(files[:len(files)-3], remaps); err == nil {
		t.Errorf("a cut image gives %q", got)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add(encodeImage(f, regularFile(1, "/read", 0, proto.Uint64(7), false)), encodeImage(f))
	f.Add([]byte{}, []byte{1, 2, 3, 4})
	f.Fuzz(func(_ *testing.T, files, remaps []byte) {
		Files(files, remaps)
		Ghosts(files, remaps)
	})
}

func unixSocket(inode, peer uint32) *fdinfo.FileEntry {
	kind, zero := fdinfo.FdTypes_UNIXSK, proto.Uint32(0)
	owner := &fown.FownEntry{Uid: zero, Euid: zero, Signum: zero, PidType: zero, Pid: zero}
	return &fdinfo.FileEntry{Type: &kind, Id: &inode, Usk: &skunix.UnixSkEntry{
		Id: &inode, Ino: &inode, Peer: &peer, Type: proto.Uint32(unix.SOCK_STREAM), State: proto.Uint32(1), Flags: zero, Uflags: zero,
		Backlog: zero, Fown: owner, Opts: &skopts.SkOptsEntry{
			SoSndbuf: zero, SoRcvbuf: zero, SoSndTmoSec: proto.Uint64(0), SoSndTmoUsec: proto.Uint64(0), SoRcvTmoSec: proto.Uint64(0), SoRcvTmoUsec: proto.Uint64(0),
		}, Name: []byte{},
	}}
}

func TestHalfSocketsHaveNoOtherEndInTheImage(t *testing.T) {
	image := encodeImage(t, unixSocket(30, 31), unixSocket(31, 30), unixSocket(40, 0), unixSocket(52, 99), unixSocket(51, 98),
		regularFile(1, "/read", unix.O_RDONLY, nil, false))
	if got, err := HalfSockets(image); err != nil || !slices.Equal(got, []uint64{51, 52}) {
		t.Errorf("%v, %v; want 51 and 52, whose peers are not in it", got, err)
	}
	if got, err := HalfSockets(image[:len(image)-3]); err == nil {
		t.Errorf("a cut image gives %v", got)
	}
}
