package stasis

import (
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
)

// needs collects the regular files that a tree reads by mappings and
// descriptors. What any process of the tree may write is left out: it changes
// until the freeze, and CRIU's images have the size that it had then.
type needs struct {
	byPath map[string]*need
	order  []*need
	mapped map[mappedFile]*need // so that a file that many processes map is looked at once
}

type need struct {
	process int // index of the first process that uses it
	file    image.NeededFile
	written bool
	unfit   bool // no regular file with a name
}

type mappedFile struct {
	dev   string
	inode uint64
}

func newNeeds() *needs {
	return &needs{byPath: make(map[string]*need), mapped: make(map[mappedFile]*need)}
}

// kernelFolders hold no files that could be kept as they are.
var kernelFolders = []string{"/proc/", "/sys/", "/dev/"}

// lasting says whether a path can name a file that outlives its processes.
func lasting(path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false
	}
	for _, folder := range kernelFolders {
		if strings.HasPrefix(path, folder) {
			return strings.HasPrefix(path, "/dev/shm/")
		}
	}
	return true
}

// look adds the files of one process, which has to be in Stasis' own mount
// namespace.
func (n *needs) look(process, pid int, maps []proc.Mapping, files *proc.Files, descriptors []proc.Descriptor) {
	for i := range maps {
		n.lookMapped(process, pid, &maps[i])
	}
	for _, d := range descriptors {
		if !lasting(d.Target) {
			continue
		}
		file := n.byPath[d.Target]
		if file == nil {
			st, err := files.Stat(d.FD)
			file = n.add(process, d.Target, st, err)
		}
		if !file.unfit && !file.written {
			file.written = files.Writable(d.FD)
		}
	}
}

func (n *needs) lookMapped(process, pid int, m *proc.Mapping) {
	if m.Inode == 0 || !lasting(m.Path) {
		return
	}
	key := mappedFile{m.Dev, m.Inode}
	file := n.mapped[key]
	if file == nil {
		if file = n.byPath[m.Path]; file == nil {
			st, err := proc.StatMapping(pid, *m)
			file = n.add(process, m.Path, st, err)
		}
		n.mapped[key] = file
	}
	if !m.Private() && strings.Contains(m.Perms, "w") {
		file.written = true
	}
}

func (n *needs) add(process int, path string, st unix.Stat_t, err error) *need {
	file := &need{process: process, file: image.NeededFile{Path: path, Size: st.Size, MtimeNS: st.Mtim.Nano()}}
	file.unfit = err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink == 0
	if _, deleted := proc.CutDeleted(path); deleted {
		file.unfit = true
	}
	n.byPath[path] = file
	n.order = append(n.order, file)
	return file
}

// addTo lists each file with the first process that uses it.
func (n *needs) addTo(list []image.Process) {
	for _, file := range n.order {
		if !file.unfit && !file.written {
			list[file.process].Needs = append(list[file.process].Needs, file.file)
		}
	}
}
