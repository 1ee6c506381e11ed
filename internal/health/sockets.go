package health

import (
	"fmt"
	"strings"

	"stasis/internal/proc"
)

// netSockets are the sockets that processes of one network namespace have.
type netSockets struct {
	pid    int // a process of that namespace
	inodes map[uint64]bool
	users  []socketUser
}

// socketUser is a process that has a socket.
type socketUser struct {
	where    string // the first that was found
	inode    uint64
	protocol string // as the kernel calls it
}

func (s *survey) countSockets() int {
	n := 0
	for _, ns := range s.sockets {
		n += len(ns.inodes)
	}
	return n
}

func (s *survey) addSocket(t *proc.Task, netns string, files *proc.Files, d proc.Descriptor, inode uint64) {
	ns := s.sockets[netns]
	if ns == nil {
		ns = &netSockets{pid: t.PID, inodes: make(map[uint64]bool)}
		s.sockets[netns] = ns
	}
	if ns.inodes[inode] {
		return // another process, or another descriptor, has it as well
	}
	ns.inodes[inode] = true
	protocol, err := files.SocketProtocol(d.FD)
	if err != nil {
		return // closed since it was listed, or a kernel before 2.6.39
	}
	ns.users = append(ns.users, socketUser{where: fd(t, d), inode: inode, protocol: protocol})
}

// dumpableProtocols are the beginnings of the kernel's names of protocols that
// CRIU knows.
var dumpableProtocols = []string{"TCP", "UDP", "RAW", "PING", "UNIX", "NETLINK", "PACKET"}

// peerView is what is known about the ends of Unix sockets.
type peerView struct {
	inTree map[uint64]bool
	peers  map[uint64]proc.UnixPeer
	waits  map[uint64]uint64     // of connections that nobody has accepted yet: who listens
	owners map[uint64]proc.Owner // of ends outside of the tree
}

// lookAtSockets looks at all sockets of the tree, after they were collected: a
// Unix socket is no obstacle where its other end is in the tree.
func (s *survey) lookAtSockets() {
	inTree := make(map[uint64]bool)
	for _, ns := range s.sockets {
		for inode := range ns.inodes {
			inTree[inode] = true
		}
	}
	for _, ns := range s.sockets {
		known, err := proc.Sockets(ns.pid, ns.inodes)
		if err != nil {
			continue // the process has just ended
		}
		view := peerView{inTree: inTree}
		if view.peers, err = proc.UnixPeers(ns.pid); err != nil {
			view.peers = nil // the machine's results say that sock_diag is missing
		}
		view.waits = waits(view.peers)
		view.owners = view.findOwners(ns.inodes)
		for _, u := range ns.users {
			s.lookAtSocket(u, known[u.inode], &view)
		}
	}
}

// waits lists who has connected and has not been accepted yet, with the socket that listens.
func waits(peers map[uint64]proc.UnixPeer) map[uint64]uint64 {
	list := make(map[uint64]uint64)
	for listener, p := range peers {
		for _, waiting := range p.Waiting {
			list[waiting] = listener
		}
	}
	delete(list, 0) // closed since
	return list
}

// other is the other end of a socket, or 0.
func (v *peerView) other(inode uint64) uint64 {
	if peer := v.peers[inode].Peer; peer != 0 {
		return peer
	}
	return v.waits[inode]
}

// findOwners finds the programs at the other ends, by one look at all processes.
func (v *peerView) findOwners(inodes map[uint64]bool) map[uint64]proc.Owner {
	outside := make(map[uint64]bool)
	for inode := range inodes {
		if other := v.other(inode); other != 0 && !v.inTree[other] {
			outside[other] = true
		}
	}
	return proc.SocketOwners(outside)
}

func (s *survey) lookAtSocket(u socketUser, k proc.Socket, v *peerView) {
	switch {
	case strings.HasPrefix(u.protocol, "MPTCP"):
		s.note(Fail, "socket", "a multipath TCP socket, which CRIU cannot dump", "start the program without it (Go: GODEBUG=multipathtcp=0)", u.where)
	case !dumpable(u.protocol):
		s.note(Fail, "socket", "a socket of the kind "+u.protocol+", which CRIU cannot dump", "close it before the dump", u.where)
	case strings.HasPrefix(u.protocol, "TCP"):
		s.lookAtTCP(u, k)
	case strings.HasPrefix(u.protocol, "UNIX"):
		s.lookAtUnix(u, k, v)
	case strings.HasPrefix(u.protocol, "NETLINK") && k.Queued > 0:
		s.note(Warn, "socket", "a netlink socket with messages that nobody has read", "dump again when they are read", u.where)
	}
}

func dumpable(protocol string) bool {
	for _, name := range dumpableProtocols {
		if strings.HasPrefix(protocol, name) {
			return true
		}
	}
	return false
}

func (s *survey) lookAtTCP(u socketUser, k proc.Socket) {
	switch k.State {
	case "", "close": // not yet, or no longer, connected
	case "listen":
		if k.Queued > 0 {
			s.note(Warn, "TCP connection", fmt.Sprintf("connections to %s wait to be accepted", k.Local), "dump when they are, or with --skip-in-flight", u.where)
		}
	default:
		s.note(Warn, "TCP connection", "it is open", "dump and restore with --tcp-established to keep it, or with --tcp-close to drop it",
			fmt.Sprintf("%s %s → %s", u.where, k.Local, k.Remote))
	}
}

// lookAtUnix finds sockets whose other end is outside of the tree. Only
// datagrams to a name can be sent to a peer that is not restored with it.
func (s *survey) lookAtUnix(u socketUser, k proc.Socket, v *peerView) {
	p := v.peers[u.inode]
	for _, waiting := range p.Waiting {
		if !v.inTree[waiting] {
			s.note(Warn, "Unix socket", fmt.Sprintf("a connection to %s from outside of the tree waits to be accepted", k.Local), "dump when it is, and see that it is closed again", u.where)
		}
	}
	other := v.other(u.inode)
	if other == 0 || v.inTree[other] {
		return
	}
	owner := "a program outside of the tree"
	if o, known := v.owners[other]; known {
		owner = fmt.Sprintf("process %d (%s), outside of the tree", o.PID, o.Comm)
	}
	switch {
	case p.Peer == 0:
		// CRIU dumps this, and cannot restore it.
		s.note(Fail, "Unix socket", "it waits to be accepted by "+owner, "dump the tree that holds both ends, or close it before the dump", u.where)
		return
	case k.Kind == "dgram":
		s.note(Warn, "Unix socket", "it sends to "+owner, "dump and restore with --ext-unix-sk", u.where)
		return
	}
	s.note(Fail, "Unix socket", "it is connected with "+owner, fmt.Sprintf("dump the tree that holds both ends, close it before the dump, or give it as --external unix[%d]", u.inode), u.where)
}
