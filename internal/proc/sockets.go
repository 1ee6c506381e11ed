package proc

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Socket is a socket as the tables in /proc/PID/net show it.
type Socket struct {
	Inode    uint64
	Protocol string // tcp, tcp6, udp, udp6, …, unix, packet, netlink
	Local    string // "127.0.0.1:80", a path, "@name"; empty if it has none
	Remote   string // of inet sockets; empty if not connected
	State    string // listen, established, …; empty where there is none
	Kind     string // of Unix sockets: stream, dgram or seqpacket
	Queued   uint64 // bytes, or connections of a listening socket, that nobody has taken
}

// socketTables are the files in /proc/PID/net and their parsers. What the
// kernel was built without is not there.
var socketTables = []struct {
	name  string
	parse func(fields []string) (Socket, bool)
}{
	{"unix", parseUnix}, // the most common first
	{"tcp", parseInet}, {"tcp6", parseInet}, {"udp", parseInet}, {"udp6", parseInet},
	{"raw", parseInet}, {"raw6", parseInet}, {"udplite", parseInet}, {"udplite6", parseInet},
	{"icmp", parseInet}, {"icmp6", parseInet}, {"netlink", parseNetlink}, {"packet", parsePacket},
}

// Sockets finds sockets by inode in the network namespace of a process. Those
// that are in none of the tables are left out: other families, and sockets of
// another namespace.
func Sockets(pid int, inodes map[uint64]bool) (map[uint64]Socket, error) {
	found := make(map[uint64]Socket, len(inodes))
	for _, table := range socketTables {
		if len(found) == len(inodes) {
			break
		}
		file, err := os.Open(path(pid, "net", table.name))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, gone(pid, "net/"+table.name, err)
		}
		err = readSockets(file, func(fields []string) {
			if s, ok := table.parse(fields); ok && inodes[s.Inode] {
				s.Protocol = table.name
				found[s.Inode] = s
			}
		})
		file.Close()
		if err != nil {
			return nil, gone(pid, "net/"+table.name, err)
		}
	}
	return found, nil
}

// readSockets visits the lines of a table except for its first, the heading.
func readSockets(r io.Reader, visit func(fields []string)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	for heading := true; lines.Scan(); heading = false {
		if !heading {
			visit(strings.Fields(lines.Text()))
		}
	}
	return lines.Err()
}

// parseInet reads a line of tcp, udp, raw and icmp, and of their IPv6 twins:
//
//	sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …
func parseInet(f []string) (Socket, bool) {
	if len(f) < 10 {
		return Socket{}, false
	}
	inode, err := strconv.ParseUint(f[9], 10, 64)
	if err != nil || inode == 0 {
		return Socket{}, false
	}
	local, err := parseAddress(f[1])
	if err != nil {
		return Socket{}, false
	}
	remote, err := parseAddress(f[2])
	if err != nil {
		return Socket{}, false
	}
	s := Socket{Inode: inode, Local: local.String(), State: inetStates[f[3]]}
	if remote.Port() != 0 {
		s.Remote = remote.String()
	}
	if _, received, ok := strings.Cut(f[4], ":"); ok {
		s.Queued, _ = strconv.ParseUint(received, 16, 64)
	}
	return s, true
}

// inetStates are the states of TCP (net/tcp_states.h); the other protocols
// borrow the words.
var inetStates = map[string]string{
	"01": "established", "02": "syn-sent", "03": "syn-received", "04": "fin-wait-1", "05": "fin-wait-2",
	"06": "time-wait", "07": "close", "08": "close-wait", "09": "last-ack", "0A": "listen", "0B": "closing",
	"0C": "syn-received",
}

// parseAddress reads "0100007F:0050": the address in 32-bit words of this
// machine's byte order, the port as a number.
func parseAddress(text string) (netip.AddrPort, error) {
	address, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(address)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("address %q is neither IPv4 nor IPv6", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port of %q: %w", text, err)
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(number)), nil
}

// parseUnix reads a line of unix:
//
//	Num RefCount Protocol Flags Type St Inode [Path]
func parseUnix(f []string) (Socket, bool) {
	if len(f) < 7 {
		return Socket{}, false
	}
	inode, err := strconv.ParseUint(f[6], 10, 64)
	if err != nil || inode == 0 {
		return Socket{}, false
	}
	s := Socket{Inode: inode, Local: strings.Join(f[7:], " ")}
	s.Kind = map[string]string{"0001": "stream", "0002": "dgram", "0005": "seqpacket"}[f[4]]
	switch flags, _ := strconv.ParseUint(f[3], 16, 32); {
	case flags&soAcceptCon != 0:
		s.State = "listen"
	case f[5] == "03":
		s.State = "established"
	}
	return s, true
}

// soAcceptCon is __SO_ACCEPTCON, the flag of listening sockets.
const soAcceptCon = 1 << 16

// parseNetlink reads a line of netlink; Local is the protocol and the port id:
//
//	sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
func parseNetlink(f []string) (Socket, bool) {
	if len(f) < 10 {
		return Socket{}, false
	}
	inode, err := strconv.ParseUint(f[9], 10, 64)
	queued, _ := strconv.ParseUint(f[4], 10, 64)
	return Socket{Inode: inode, Local: f[1] + ":" + f[2], Queued: queued}, err == nil && inode != 0
}

// parsePacket reads a line of packet; Local is the number of the interface:
//
//	sk RefCnt Type Proto Iface R Rmem User Inode
func parsePacket(f []string) (Socket, bool) {
	if len(f) < 9 {
		return Socket{}, false
	}
	inode, err := strconv.ParseUint(f[8], 10, 64)
	return Socket{Inode: inode, Local: "if" + f[4]}, err == nil && inode != 0
}

// Owner is a process that has a socket open.
type Owner struct {
	PID  int
	Comm string
}

// SocketOwners finds a process for each of some sockets. It looks through the
// descriptors of all processes.
func SocketOwners(inodes map[uint64]bool) map[uint64]Owner {
	owners := make(map[uint64]Owner)
	if len(inodes) == 0 {
		return owners
	}
	pids, err := All()
	if err != nil {
		return owners
	}
	for _, pid := range pids {
		for _, inode := range SocketsOf(pid) {
			if _, known := owners[inode]; known || !inodes[inode] {
				continue
			}
			raw, _ := readFile(pid, "comm")
			owners[inode] = Owner{pid, strings.TrimSpace(string(raw))}
		}
	}
	return owners
}

// PipeUsers finds a process for each of the pipes that have one that is wanted,
// by the process, the pipe and how that is open there (open(2)). It looks through
// the descriptors of all processes.
func PipeUsers(wanted func(pid int, inode uint64, flags int) bool) map[uint64]Owner {
	users := make(map[uint64]Owner)
	pids, err := All()
	if err != nil {
		return users
	}
	for _, pid := range pids {
		eachPipe(pid, func(inode uint64, flags int) {
			if _, known := users[inode]; !known && wanted(pid, inode, flags) {
				raw, _ := readFile(pid, "comm")
				users[inode] = Owner{pid, strings.TrimSpace(string(raw))}
			}
		})
	}
	return users
}

func eachPipe(pid int, visit func(inode uint64, flags int)) {
	files, err := OpenFiles(pid)
	if err != nil {
		return
	}
	defer files.Close()
	list, err := files.List()
	if err != nil {
		return
	}
	for _, d := range list {
		inode, ok := d.Pipe()
		if !ok {
			continue
		}
		if info, err := files.Info(d.FD); err == nil { // else closed since it was listed
			visit(inode, info.Flags)
		}
	}
}

// SocketsOf lists the inodes of the sockets that a process has open; none where
// it cannot be read.
func SocketsOf(pid int) []uint64 {
	files, err := OpenFiles(pid)
	if err != nil {
		return nil
	}
	defer files.Close()
	list, err := files.List()
	if err != nil {
		return nil
	}
	var inodes []uint64
	for _, d := range list {
		if inode, ok := d.Socket(); ok {
			inodes = append(inodes, inode)
		}
	}
	return inodes
}
