package stasis

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/proc"
)

// thisHost describes what a restore depends on.
func thisHost(c *criu.Binary) (image.Host, error) {
	host, err := hostFacts()
	if c != nil { // a pre-dump has none
		host.CRIUVersion = c.VersionString()
	}
	return host, err
}

// hostFacts describes this machine without its CRIU.
func hostFacts() (image.Host, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return image.Host{}, fmt.Errorf("uname: %w", err)
	}
	cpu, err := proc.ReadCPU()
	if err != nil {
		return image.Host{}, err
	}
	text := func(raw []byte) string { return unix.ByteSliceToString(raw) }
	return image.Host{
		Hostname: text(u.Nodename[:]), Kernel: text(u.Release[:]), Arch: text(u.Machine[:]),
		CPUModel: cpu.Model, CPUFeatures: cpu.Features, PageSize: unix.Getpagesize(),
	}, nil
}

// summarize describes a running tree for people, and notes the files that a
// restore has to find unchanged. It reads /proc only. A process that ends
// meanwhile keeps what is known of it.
func summarize(tree []*proc.Task) ([]image.Process, error) {
	ours, err := proc.Namespaces(unix.Getpid())
	if err != nil {
		return nil, err
	}
	s := &summary{
		ours: ours, inside: make(map[int]int, len(tree)),
		sockets: make(map[string]*netSockets), needs: newNeeds(),
	}
	for _, t := range tree {
		s.inside[t.PID] = t.NSPID
	}
	list := make([]image.Process, len(tree))
	for i, t := range tree {
		list[i] = s.describe(t)
		if t.Zombie() {
			continue
		}
		if err := s.look(i, t, &list[i]); err != nil && !errors.Is(err, proc.ErrGone) {
			return nil, err
		}
	}
	if err := s.addSockets(list); err != nil {
		return nil, err
	}
	s.needs.addTo(list)
	return list, nil
}

// summary is a description of a tree under way.
type summary struct {
	ours    map[string]string      // Stasis' own namespaces
	inside  map[int]int            // pids: as seen here, as seen inside
	sockets map[string]*netSockets // by network namespace
	needs   *needs
}

// netSockets are the sockets that processes of one network namespace have.
type netSockets struct {
	pid       int // a process of that namespace
	inodes    map[uint64]bool
	protocols map[uint64]string // as the kernel calls them, for sockets that are in no table
	users     []socketUser
}

type socketUser struct {
	process, fd int // index in the list, descriptor
	inode       uint64
}

// describe says what is known of a process without another look at it.
func (s *summary) describe(t *proc.Task) image.Process {
	p := image.Process{
		PID: t.NSPID, PPID: t.PPID, Comm: t.Comm, Exe: t.Exe, Cmdline: t.Cmdline,
		State: string(t.State), Threads: t.Threads,
	}
	if parent, known := s.inside[t.PPID]; known {
		p.PPID = parent
	}
	return p
}

// look adds what else /proc has about a process.
func (s *summary) look(i int, t *proc.Task, p *image.Process) error {
	if t.NSPID != t.PID {
		p.Threads = proc.NumbersInside(t.Threads)
	}
	namespaces, err := proc.Namespaces(t.PID)
	if err != nil {
		return err
	}
	for kind, name := range namespaces {
		if s.ours[kind] != name {
			p.OwnNamespaces = append(p.OwnNamespaces, kind)
		}
	}
	slices.Sort(p.OwnNamespaces)

	maps, err := proc.Maps(t.PID)
	if err != nil {
		return err
	}
	p.Mappings = mappingsByKind(maps)
	files, err := proc.OpenFiles(t.PID)
	if err != nil {
		return err
	}
	defer files.Close()
	descriptors, err := files.List()
	if err != nil {
		return err
	}
	s.sortDescriptors(i, t.PID, namespaces["net"], files, descriptors, p)
	if s.ours["mnt"] == namespaces["mnt"] { // else the paths mean something else here
		s.needs.look(i, t.PID, maps, files, descriptors)
	}
	return nil
}

func mappingsByKind(maps []proc.Mapping) map[string]image.Mapping {
	kinds := make(map[string]image.Mapping)
	for i := range maps {
		kind := maps[i].Kind()
		sum := kinds[kind]
		sum.Count++
		sum.Bytes += maps[i].Len()
		kinds[kind] = sum
	}
	return kinds
}

// sortDescriptors parts the descriptors into files and sockets.
func (s *summary) sortDescriptors(i, pid int, netns string, files *proc.Files, descriptors []proc.Descriptor, p *image.Process) {
	for _, d := range descriptors {
		inode, isSocket := d.Socket()
		if !isSocket {
			p.Files = append(p.Files, image.OpenFile{FD: d.FD, Path: d.Target})
			continue
		}
		n := s.sockets[netns]
		if n == nil {
			n = &netSockets{pid: pid, inodes: make(map[uint64]bool), protocols: make(map[uint64]string)}
			s.sockets[netns] = n
		}
		if n.protocols[inode] == "" { // asked once, however many processes share it
			protocol, err := files.SocketProtocol(d.FD)
			if err != nil {
				protocol = "unknown"
			}
			n.protocols[inode], n.inodes[inode] = protocol, true
		}
		n.users = append(n.users, socketUser{process: i, fd: d.FD, inode: inode})
	}
}

// addSockets looks all sockets up, with one read of each table.
func (s *summary) addSockets(list []image.Process) error {
	for _, n := range s.sockets {
		found, err := proc.Sockets(n.pid, n.inodes)
		if err != nil && !errors.Is(err, proc.ErrGone) {
			return err
		}
		for _, u := range n.users {
			entry := image.Socket{FD: u.fd, Protocol: strings.ToLower(n.protocols[u.inode])}
			if known, ok := found[u.inode]; ok {
				entry = image.Socket{
					FD: u.fd, Protocol: known.Protocol, Local: known.Local, Remote: known.Remote, State: known.State,
				}
			}
			list[u.process].Sockets = append(list[u.process].Sockets, entry)
		}
	}
	return nil
}

// optionsOfCRIU is the key in the manifest's options for CRIU's own.
const optionsOfCRIU = "criu"

// restoreOptions are the options of a dump that its restore has to know.
func restoreOptions(o *DumpOptions) map[string]string {
	raw, err := json.Marshal(&o.CRIU)
	if err != nil {
		return nil
	}
	return map[string]string{optionsOfCRIU: string(raw)}
}
