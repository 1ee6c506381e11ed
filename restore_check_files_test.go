package stasis

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"stasis/internal/codec"
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// filesImage encodes CRIU's list of files.
func filesImage(t *testing.T, files ...criu.File) []byte {
	t.Helper()
	out := binary.LittleEndian.AppendUint32(nil, 0x54564319)
	out = binary.LittleEndian.AppendUint32(out, 0x56303138)
	for i, f := range files {
		kind, id, flags := fdinfo.FdTypes_REG, uint32(i+1), uint32(unix.O_RDONLY)
		if f.Writable {
			flags = unix.O_RDWR
		}
		reg := &regfile.RegFileEntry{Id: &id, Flags: &flags, Pos: proto.Uint64(0), Name: &f.Path, Mode: &f.Mode, Fown: &fown.FownEntry{
			Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0),
		}}
		if f.Size >= 0 {
			reg.Size = proto.Uint64(uint64(f.Size))
		}
		raw, err := proto.Marshal(&fdinfo.FileEntry{Type: &kind, Id: &id, Reg: reg})
		if err != nil {
			t.Fatal(err)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(len(raw)))
		out = append(out, raw...)
	}
	return out
}

// restoreOf is a restore of a checkpoint of no memory with these files, that
// has been opened.
func restoreOf(t *testing.T, m *Manifest, files []byte) *restore {
	t.Helper()
	host, err := hostFacts()
	if err != nil {
		t.Fatal(err)
	}
	host.CRIUVersion = "4.2.1"
	m.Host, m.Kind, m.Created = host, image.KindFull, time.Now()
	dir := filepath.Join(t.TempDir(), "checkpoint")
	target, err := store.CreateFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	none, _ := codec.New("none", 0)
	w, err := writer.New(target, writer.Options{Shards: 1, Codec: none})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.PutFile(criu.FilesImage, bytes.NewReader(files)); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(nil, m); err != nil {
		t.Fatal(err)
	}
	r := &restore{opts: RestoreOptions{Dir: dir}, criu: &criu.Binary{Version: 40201}}
	src, err := store.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.checkpoint, err = reader.Open(src); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.checkpoint.Close() })
	return r
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "data")
	const content = "as it was"
	writeFile := func(text string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	later := time.Now().Add(time.Hour)
	for _, test := range []struct {
		name      string
		change    func()
		writable  bool
		size      int64
		otherHost bool
		conflict  string
		warning   string
	}{
		{name: "unchanged", change: func() {}, size: int64(len(content))},
		{name: "missing", change: func() { os.Remove(path) }, size: int64(len(content)), conflict: "is not there"},
		{name: "longer", change: func() { writeFile(content+"!", 0o600) }, size: int64(len(content)), conflict: "has 10 bytes, and had 9"},
		{name: "any length", change: func() { writeFile(content+"!", 0o600) }, size: -1},
		{name: "mode", change: func() { os.Chmod(path, 0o640) }, size: int64(len(content)), conflict: "chmod 600"},
		{name: "a folder now", change: func() { os.Remove(path); os.Mkdir(path, 0o700) }, size: int64(len(content)), conflict: "is a folder, and was a file"},
		{name: "touched", change: func() { os.Chtimes(path, later, later) }, size: int64(len(content)), conflict: "was modified since"},
		{name: "touched elsewhere", change: func() { os.Chtimes(path, later, later) }, size: int64(len(content)), otherHost: true, warning: "another time"},
		{name: "written before", change: func() { os.Chtimes(path, time.Now(), time.Now()) }, writable: true, size: int64(len(content))},
		{name: "written after", change: func() { os.Chtimes(path, later, later) }, writable: true, size: int64(len(content)), conflict: "was modified since"},
	} {
		t.Run(test.name, func(t *testing.T) {
			os.RemoveAll(path)
			writeFile(content, 0o600)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			m := treeOf(freePID(t))
			if !test.writable {
				m.Processes[0].Needs = []image.NeededFile{{Path: path, Size: test.size, MtimeNS: info.ModTime().UnixNano()}}
			}
			r := restoreOf(t, m, filesImage(t,
				criu.File{Path: path, Mode: unix.S_IFREG | 0o600, Size: test.size, Writable: test.writable},
				criu.File{Path: dir, Mode: unix.S_IFDIR | 0o755, Size: -1},
				criu.File{Path: "/dev/pts/12345", Mode: unix.S_IFCHR | 0o620, Size: -1},
				criu.File{Path: "/proc/12345/stat", Mode: unix.S_IFREG | 0o444, Size: -1},
			))
			if test.otherHost {
				r.checkpoint.Manifest().Host.Hostname = "elsewhere"
			}
			test.change()
			begun := time.Now()
			err = r.check(t.Context())
			t.Logf("%v: %v, %q", time.Since(begun), err, r.result.Warnings)
			if (err != nil) != (test.conflict != "") || err != nil && !strings.Contains(err.Error(), test.conflict) {
				t.Errorf("%v, want a conflict %q", err, test.conflict)
			}
			if err != nil && (!errors.Is(err, ErrConflict) || FailedStep(err) != StepCheck) {
				t.Errorf("%v is no ErrConflict of the check", err)
			}
			if got := strings.Join(r.result.Warnings, ";"); !strings.Contains(got, test.warning) || test.warning == "" && got != "" {
				t.Errorf("warnings %q, want %q", got, test.warning)
			}
			if r.opts.Force = true; r.check(t.Context()) != nil {
				t.Errorf("forced, and still: %v", r.check(t.Context()))
			}
		})
	}
}
