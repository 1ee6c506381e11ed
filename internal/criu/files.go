package criu

import (
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	skunix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Names of the images that [Files] reads.
const (
	FilesImage  = "files.img"       // every open or mapped file of the tree
	RemapsImage = "remap-fpath.img" // those that had lost their name; there may be none
)

// File is a file that CRIU opens by its path in a restore.
type File struct {
	Path     string // in the mount namespace of the tree
	Mode     uint32 // as stat(2) has it: kind and permissions
	Size     int64  // in bytes, which it must have; -1: any
	Writable bool   // opened for writing
}

// Files lists the files that CRIU opens by their paths, from the content of the
// two images. What it restores by itself is left out: deleted files that it
// keeps a copy of, external ones, and those of processes in /proc.
func Files(files, remaps []byte) ([]File, error) {
	remapped := make(map[uint32]bool)
	if len(remaps) > 0 {
		err := decodeEntries(remaps, func(raw []byte) error {
			var e remap.RemapFilePathEntry
			if err := proto.Unmarshal(raw, &e); err != nil {
				return err
			}
			remapped[e.GetOrigId()] = true
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("CRIU's image %s is damaged: %w", RemapsImage, err)
		}
	}
	var list []File
	err := decodeEntries(files, func(raw []byte) error {
		var e fdinfo.FileEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		reg := e.GetReg()
		if reg == nil || reg.GetExt() || remapped[reg.GetId()] {
			return nil
		}
		f := File{Path: reg.GetName(), Mode: reg.GetMode(), Size: -1}
		if reg.Size != nil {
			f.Size = int64(reg.GetSize())
		}
		f.Writable = reg.GetFlags()&unix.O_ACCMODE != unix.O_RDONLY
		list = append(list, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("CRIU's image %s is damaged: %w", FilesImage, err)
	}
	return list, nil
}

// HalfSockets lists the inodes of the Unix sockets in the image [FilesImage] whose
// other end is not in it. CRIU dumps such a socket where its connection has not
// been accepted yet by a program outside of the tree, and cannot restore it.
func HalfSockets(files []byte) (halves []uint64, err error) {
	there := make(map[uint32]bool)
	var connected []*skunix.UnixSkEntry
	err = decodeEntries(files, func(raw []byte) error {
		var e fdinfo.FileEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		if socket := e.GetUsk(); socket != nil {
			there[socket.GetIno()] = true
			connected = append(connected, socket)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("CRIU's image %s is damaged: %w", FilesImage, err)
	}
	for _, socket := range connected {
		if peer := socket.GetPeer(); peer != 0 && !there[peer] {
			halves = append(halves, uint64(socket.GetIno()))
		}
	}
	slices.Sort(halves)
	return halves, nil
}

// Ghosts lists the temporary names that CRIU gives the deleted files of a tree in a
// restore, from the content of the same two images as [Files]. It takes them away
// again in the same restore, and a restore fails where one is there.
func Ghosts(files, remaps []byte) (paths []string, err error) {
	ids := make(map[uint32]uint32)
	if err := decodeEntries(remaps, func(raw []byte) error {
		var e remap.RemapFilePathEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		if e.GetRemapType() == remap.RemapType_GHOST {
			ids[e.GetOrigId()] = e.GetRemapId()
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("CRIU's image %s is damaged: %w", RemapsImage, err)
	}
	if err := decodeEntries(files, func(raw []byte) error {
		var e fdinfo.FileEntry
		if err := proto.Unmarshal(raw, &e); err != nil {
			return err
		}
		if id, ghost := ids[e.GetReg().GetId()]; ghost && e.GetReg() != nil {
			paths = append(paths, fmt.Sprintf("%s.cr.%x.ghost", e.GetReg().GetName(), id))
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("CRIU's image %s is damaged: %w", FilesImage, err)
	}
	return paths, nil
}
