package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// sock_diag(7) says what the tables in /proc do not: which Unix sockets belong
// together, and who listens, without a walk over all connections.
const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY

	unixShowPeer  = 1 << 2 // UDIAG_SHOW_PEER
	unixShowIcons = 1 << 3 // UDIAG_SHOW_ICONS
	unixAttrPeer  = 2      // UNIX_DIAG_PEER
	unixAttrIcons = 3      // UNIX_DIAG_ICONS

	unixMessage = 16 // struct unix_diag_msg
	inetMessage = 72 // struct inet_diag_msg
	inetRequest = 56 // struct inet_diag_req_v2
	unixRequest = 24 // struct unix_diag_req

	stateFinWait2 = 5  // TCP_FIN_WAIT2
	stateTimeWait = 6  // TCP_TIME_WAIT
	stateListen   = 10 // TCP_LISTEN
)

// UnixPeer tells what a Unix socket is connected with.
type UnixPeer struct {
	Peer    uint64   // inode of the other end; 0: none
	Waiting []uint64 // inodes of sockets whose connection nobody has accepted yet; 0 for one that has been closed since
}

// UnixPeers lists the connected and the listening Unix sockets in the network
// namespace of a process, by inode.
func UnixPeers(pid int) (map[uint64]UnixPeer, error) {
	request := make([]byte, unixRequest)
	request[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(request[4:], ^uint32(0)) // all states
	binary.NativeEndian.PutUint32(request[12:], unixShowPeer|unixShowIcons)
	peers := make(map[uint64]UnixPeer)
	ask := func() error {
		return sockDiag(request, func(body []byte) { addUnix(peers, body) })
	}
	here, err := sameNetwork(pid)
	switch {
	case err != nil:
	case here:
		err = ask()
	default:
		err = inNetworkOf(pid, ask)
	}
	return peers, err
}

func addUnix(peers map[uint64]UnixPeer, body []byte) {
	if len(body) < unixMessage {
		return
	}
	var p UnixPeer
	attributes(body[unixMessage:], func(kind uint16, value []byte) {
		switch kind {
		case unixAttrPeer:
			if len(value) >= 4 {
				p.Peer = uint64(binary.NativeEndian.Uint32(value))
			}
		case unixAttrIcons:
			for ; len(value) >= 4; value = value[4:] {
				p.Waiting = append(p.Waiting, uint64(binary.NativeEndian.Uint32(value)))
			}
		}
	})
	if p.Peer != 0 || p.Waiting != nil {
		peers[uint64(binary.NativeEndian.Uint32(body[4:]))] = p
	}
}

// Listener is a TCP socket that accepts connections.
type Listener struct {
	Address netip.AddrPort
	Inode   uint64
}

// Listeners lists the listening TCP sockets in the network namespace of the
// calling process.
func Listeners() ([]Listener, error) {
	var list []Listener
	err := tcpSockets(1<<stateListen, func(c Connection) {
		list = append(list, Listener{Address: c.Local, Inode: c.Inode})
	})
	return list, err
}

// Connection is a TCP socket with a peer.
type Connection struct {
	Local, Remote netip.AddrPort
	Inode         uint64 // 0: no program has it any more, and the kernel is about to close it

	state byte
}

// Connections lists the TCP connections in the network namespace of the calling
// process. Left out are those that a new connection may take the place of: they
// wait for stray packets only (TIME-WAIT), or no program has them any more and
// the peer has confirmed the end (FIN-WAIT-2).
func Connections() ([]Connection, error) {
	var list []Connection
	err := tcpSockets(^uint32(1<<stateListen|1<<stateTimeWait), func(c Connection) {
		replaceable := c.Inode == 0 && c.state == stateFinWait2
		if c.Remote.Port() != 0 && !replaceable {
			list = append(list, c)
		}
	})
	return list, err
}

// tcpSockets visits the TCP sockets whose states are in a set of bits.
func tcpSockets(states uint32, visit func(Connection)) error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, inetRequest)
		request[0], request[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(request[4:], states)
		err := sockDiag(request, func(body []byte) {
			if c, ok := connection(body); ok {
				visit(c)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func connection(body []byte) (Connection, bool) {
	if len(body) < inetMessage {
		return Connection{}, false
	}
	size := 4
	if body[0] == unix.AF_INET6 {
		size = 16
	}
	local, _ := netip.AddrFromSlice(body[8 : 8+size])
	remote, _ := netip.AddrFromSlice(body[24 : 24+size])
	return Connection{
		Local:  netip.AddrPortFrom(local, binary.BigEndian.Uint16(body[4:])),
		Remote: netip.AddrPortFrom(remote, binary.BigEndian.Uint16(body[6:])),
		Inode:  uint64(binary.NativeEndian.Uint32(body[68:])),
		state:  body[1],
	}, true
}

// sockDiag sends a request for a list and visits the bodies of its messages.
func sockDiag(request []byte, visit func(body []byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("ask the kernel for its sockets: %w", err)
	}
	defer unix.Close(fd)
	message := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(request))
	binary.NativeEndian.PutUint32(message, uint32(cap(message)))
	binary.NativeEndian.PutUint16(message[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(message[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, append(message, request...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask the kernel for its sockets: %w", err)
	}
	for buffer := make([]byte, 64<<10); ; {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list the kernel's sockets: %w", err)
		}
		done, err := diagMessages(buffer[:n], visit)
		if done || err != nil {
			return err
		}
	}
}

// diagMessages visits the messages of one packet, and says whether the list has
// ended.
func diagMessages(packet []byte, visit func(body []byte)) (done bool, err error) {
	messages, err := syscall.ParseNetlinkMessage(packet)
	if err != nil {
		return false, fmt.Errorf("list the kernel's sockets: %w", err)
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(m.Data) < 4 {
				return false, errors.New("list the kernel's sockets: a cut error message")
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			return false, fmt.Errorf("list the kernel's sockets: %w", errno)
		case sockDiagByFamily:
			visit(m.Data)
		}
	}
	return false, nil
}

// attributes visits the attributes (struct nlattr) of a message.
func attributes(raw []byte, visit func(kind uint16, value []byte)) {
	for len(raw) >= unix.SizeofNlAttr {
		length := int(binary.NativeEndian.Uint16(raw))
		if length < unix.SizeofNlAttr || length > len(raw) {
			return
		}
		visit(binary.NativeEndian.Uint16(raw[2:]), raw[unix.SizeofNlAttr:length])
		raw = raw[min((length+3)&^3, len(raw)):]
	}
}

func sameNetwork(pid int) (bool, error) {
	theirs, err := os.Readlink(path(pid, "ns", "net"))
	if err != nil {
		return false, gone(pid, "ns/net", err)
	}
	ours, err := os.Readlink("/proc/self/ns/net")
	return err == nil && ours == theirs, nil
}

// inNetworkOf runs a function in the network namespace of a process, by a
// thread that enters it and comes back.
func inNetworkOf(pid int, work func() error) error {
	theirs, err := os.Open(path(pid, "ns", "net"))
	if err != nil {
		return gone(pid, "ns/net", err)
	}
	defer theirs.Close()
	result := make(chan error, 1)
	go func() { result <- inNamespace(int(theirs.Fd()), pid, work) }()
	return <-result
}

// inNamespace has its goroutine, and so a thread, for itself.
func inNamespace(fd, pid int, work func() error) error {
	runtime.LockOSThread()
	ours, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer ours.Close()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace of process %d: %w", pid, err)
	}
	err = work()
	// A thread that cannot come back stays locked: the runtime gives it to
	// nobody else.
	if back := unix.Setns(int(ours.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave the network namespace of process %d: %w", pid, back))
	}
	runtime.UnlockOSThread()
	return err
}
