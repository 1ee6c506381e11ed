package proc

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func listSelf(t *testing.T) (*Files, []Descriptor) {
	t.Helper()
	files, err := OpenFiles(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	list, err := files.List()
	if err != nil {
		t.Fatal(err)
	}
	return files, list
}

func find(list []Descriptor, fd int) (Descriptor, bool) {
	i := slices.IndexFunc(list, func(d Descriptor) bool { return d.FD == fd })
	if i < 0 {
		return Descriptor{}, false
	}
	return list[i], true
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	writer, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := unix.Flock(int(writer.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	files, list := listSelf(t)
	for _, file := range []*os.File{reader, writer} {
		fd := int(file.Fd())
		d, ok := find(list, fd)
		if !ok || d.Target != path || !d.HasPath() {
			t.Errorf("descriptor %d: %+v, want %s", fd, d, path)
		}
		if got, want := files.Writable(fd), file == writer; got != want {
			t.Errorf("descriptor %d: writable %t, want %t", fd, got, want)
		}
		st, err := files.Stat(fd)
		if err != nil || st.Size != 7 {
			t.Errorf("descriptor %d: %d bytes, %v; want 7", fd, st.Size, err)
		}
	}
	info, err := files.Info(int(writer.Fd()))
	if err != nil || info.Flags&unix.O_APPEND == 0 || !slices.Equal(info.Locks, []string{"FLOCK ADVISORY WRITE"}) {
		t.Errorf("fdinfo %+v, %v; want O_APPEND and one lock", info, err)
	}
	mounts, err := Mounts(os.Getpid())
	if err != nil || mounts[info.MountID] == "" {
		t.Errorf("the file's mount %d is not among %v, %v", info.MountID, mounts, err)
	}
	if !slices.IsSortedFunc(list, func(a, b Descriptor) int { return a.FD - b.FD }) {
		t.Errorf("descriptors are not in order: %v", list)
	}
}

func TestFilesOfAProcessThatEnded(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFiles(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("%v, want ErrGone", err)
	}
	if _, err := Namespaces(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("%v, want ErrGone", err)
	}
}

func TestNamespaces(t *testing.T) {
	list, err := Namespaces(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"mnt", "net", "pid"} {
		if !strings.HasPrefix(list[kind], kind+":[") {
			t.Errorf("namespace %s is %q", kind, list[kind])
		}
	}
}

func TestSockets(t *testing.T) {
	t.Setenv("GODEBUG", "multipathtcp=0") // else what listens has a protocol of its own
	addresses := map[string]string{       // by protocol; "" as remote where there is none
		"tcp": "127.0.0.1:0", "tcp6": "[::1]:0", "udp": "127.0.0.1:0", "udp6": "[::1]:0",
	}
	wantLocal := make(map[string]string)
	for protocol, address := range addresses {
		if strings.HasPrefix(protocol, "tcp") {
			l, err := net.Listen(protocol[:3], address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			wantLocal[protocol] = l.Addr().String()
			continue
		}
		l, err := net.ListenPacket(protocol[:3], address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		wantLocal[protocol] = l.LocalAddr().String()
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	netlink, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(netlink)
	if err := unix.Bind(netlink, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}

	files, list := listSelf(t)
	wanted := make(map[uint64]bool)
	byFD := make(map[int]uint64)
	for _, d := range list {
		if inode, ok := d.Socket(); ok {
			wanted[inode] = true
			byFD[d.FD] = inode
		}
	}
	found, err := Sockets(os.Getpid(), wanted)
	if err != nil {
		t.Fatal(err)
	}
	for protocol, local := range wantLocal {
		ok := false
		for _, s := range found {
			ok = ok || s.Protocol == protocol && s.Local == local && s.Remote == "" && (s.State == "listen") == strings.HasPrefix(protocol, "tcp")
		}
		if !ok {
			t.Errorf("%s %s is not among %+v", protocol, local, found)
		}
	}
	one, two := found[byFD[pair[0]]], found[byFD[pair[1]]]
	if one.Kind != "seqpacket" || one.State != "established" || one.Protocol != "unix" {
		t.Errorf("one of a pair of Unix sockets: %+v", one)
	}
	peers, err := UnixPeers(os.Getpid())
	if err != nil || peers[one.Inode].Peer != two.Inode || peers[two.Inode].Peer != one.Inode {
		t.Errorf("peers of %d and %d: %+v, %+v, %v", one.Inode, two.Inode, peers[one.Inode], peers[two.Inode], err)
	}
	if found[byFD[netlink]].Protocol != "netlink" {
		t.Errorf("netlink socket: %+v", found[byFD[netlink]])
	}
	for fd, want := range map[int]string{pair[0]: "UNIX", netlink: "NETLINK"} {
		if got, err := files.SocketProtocol(fd); !strings.HasPrefix(got, want) {
			t.Errorf("protocol of descriptor %d: %q, %v; want %s", fd, got, err, want)
		}
	}
	if o := SocketOwners(map[uint64]bool{one.Inode: true})[one.Inode]; o.PID != os.Getpid() || o.Comm == "" {
		t.Errorf("owner of a socket: %+v, want this program", o)
	}
}

func TestUnacceptedConnections(t *testing.T) {
	name := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, list := listSelf(t)
	peers, err := UnixPeers(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	waiting := 0
	for _, d := range list {
		if inode, ok := d.Socket(); ok {
			waiting += len(peers[inode].Waiting)
		}
	}
	if waiting != 1 {
		t.Errorf("%d connections wait, want 1", waiting)
	}
}

func TestSocketsOfAnotherNetwork(t *testing.T) {
	cmd := exec.Command("unshare", "--net", "sh", "-c", "echo ready; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip("unshare: ", err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Skip("unshare --net is not allowed here")
	}
	peers, err := UnixPeers(cmd.Process.Pid)
	if err != nil || len(peers) != 0 {
		t.Errorf("an empty network has Unix sockets: %v, %v", peers, err)
	}
	ours, theirs := readLink(t, os.Getpid()), readLink(t, cmd.Process.Pid)
	if ours == theirs {
		t.Errorf("this program has moved to %s", theirs)
	}
}

func readLink(t *testing.T, pid int) string {
	t.Helper()
	list, err := Namespaces(pid)
	if err != nil {
		t.Fatal(err)
	}
	return list["net"]
}

func TestListeners(t *testing.T) {
	t.Setenv("GODEBUG", "multipathtcp=0")
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	list, err := Listeners()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(list, func(x Listener) bool { return x.Address.String() == l.Addr().String() }) {
		t.Errorf("%s is not among %v", l.Addr(), list)
	}
}

func TestParseCPU(t *testing.T) {
	x86 := "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: sse2 avx fpu\n\nprocessor\t: 1\nmodel name\t: Other\nflags\t\t: x\n"
	if cpu := parseCPU(x86); cpu.Model != "Some CPU @ 2 GHz" || !slices.Equal(cpu.Features, []string{"avx", "fpu", "sse2"}) {
		t.Errorf("%+v", cpu)
	}
	arm := "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n"
	if cpu := parseCPU(arm); cpu.Model != "implementer 0x41 part 0xd0c" || !slices.Equal(cpu.Features, []string{"asimd", "fp"}) {
		t.Errorf("%+v", cpu)
	}
}

func TestExiting(t *testing.T) {
	stat, err := readFile(os.Getpid(), "stat")
	if err != nil || exiting(stat) {
		t.Errorf("this program is on its way out: %s, %v", stat, err)
	}
	if !exiting([]byte("7 (a) b) R 1 7 7 0 -1 4194308 0 0")) {
		t.Error("PF_EXITING is not seen")
	}
}

// What other programs choose to write into /proc must not make us fall.
func FuzzSocketLines(f *testing.F) {
	f.Add("   0: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1063 1 0 100 0 0 10 0")
	f.Add("0000000065a71910: 00000003 00000000 00010000 0001 01  1059 /run/a b")
	f.Add("00000000d08aa407 0   0          00000000 0        0        0     2        0        4")
	f.Fuzz(func(_ *testing.T, line string) {
		for _, table := range socketTables {
			table.parse(strings.Fields(line))
		}
		parseInfo(line)
		addUnix(map[uint64]UnixPeer{}, []byte(line))
		connection([]byte(line))
		diagMessages([]byte(line), func([]byte) {})
	})
}
