package convert

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
)

// Engine is what the manifest of an imported checkpoint has for the way in which memory was kept from CRIU.
const Engine = "import"

// manifest describes the checkpoint as far as CRIU's images tell. What they do not tell stays empty.
func (i *importing) manifest() (*image.Manifest, error) {
	dir := i.layers.top()
	root := i.state.processes[0]
	created := time.Now()
	if st, err := os.Stat(filepath.Join(dir, inventoryImage)); err == nil {
		created = st.ModTime()
	}
	created = created.UTC().Truncate(time.Millisecond)
	name := i.options.Name
	if name == "" {
		name = i.command() + "-" + created.Format("20060102T150405")
	}
	host, err := i.host(dir, root)
	if err != nil {
		return nil, err
	}
	options := i.criuOptions()
	raw, err := json.Marshal(&options)
	if err != nil {
		return nil, fmt.Errorf("encode the options: %w", err)
	}
	m := &image.Manifest{
		Stasis: i.options.Stasis, Name: name, Kind: image.KindFull, Created: created, Engine: Engine, Host: host, RootPID: root.PID,
		Options: map[string]string{optionsKey: string(raw)},
		Figures: image.Figures{PauseUS: criu.FrozenTime(dir).Microseconds()},
	}
	for _, p := range i.state.processes {
		m.Processes = append(m.Processes, i.describe(p))
	}
	if slices.Contains(m.Processes[0].OwnNamespaces, "mnt") {
		i.notes = append(i.notes, "the tree has a mount namespace of its own: a restore needs its root file system (--root) and the mounts that came from outside (--external)")
	}
	return m, nil
}

// architectures are the names of uname -m for what a core image can be of.
var architectures = map[criu_core.CoreEntryMarch]string{
	criu_core.CoreEntry_X86_64: "x86_64", criu_core.CoreEntry_AARCH64: "aarch64", criu_core.CoreEntry_ARM: "armv7l",
	criu_core.CoreEntry_PPC64: "ppc64le", criu_core.CoreEntry_S390: "s390x", criu_core.CoreEntry_MIPS: "mips64",
	criu_core.CoreEntry_LOONGARCH64: "loongarch64", criu_core.CoreEntry_RISCV64: "riscv64",
}

// host says what is known of the machine of the dump: its kind from the core image, its processor where CRIU was told to note
// it, the rest where the log of the dump is there.
func (i *importing) host(dir string, root *process) (image.Host, error) {
	arch, known := architectures[root.core.GetMtype()]
	if !known {
		return image.Host{}, fmt.Errorf("core-%d.img is of a kind of machine that Stasis does not know (%d)", root.PID, root.core.GetMtype())
	}
	h := image.Host{Arch: arch}
	info, err := optional(decodeFirst[cpuinfo.CpuinfoEntry](dir, "cpuinfo.img", criu.MagicCPUInfo))
	if err != nil {
		return h, err
	}
	if x86 := info.GetX86Entry(); len(x86) > 0 {
		h.CPUModel = x86[0].GetModelId()
		h.CPUFeatures = x86Features(x86[0].GetCapability())
	}
	readLog(dir, &h)
	if i.archive != nil && h.Kernel == "" {
		readLog(i.archive.root, &h)
	}
	var unknown []string
	for _, fact := range []struct{ value, name string }{
		{h.Kernel, "kernel"}, {h.CRIUVersion, "version of CRIU"}, {strings.Join(h.CPUFeatures, " "), "processor's features"},
	} {
		if fact.value == "" {
			unknown = append(unknown, fact.name)
		}
	}
	if len(unknown) > 0 {
		i.notes = append(i.notes, "CRIU's images do not tell of the machine of the dump: "+strings.Join(unknown, ", ")+"; a restore cannot compare that")
	}
	return h, nil
}

// readLog takes what the first lines of CRIU's log tell of the machine, where the log is in the folder.
func readLog(dir string, h *image.Host) {
	f, _, err := openImage(dir, "dump.log")
	if err != nil {
		return
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 64<<10))
	for lines.Scan() {
		_, text, _ := strings.Cut(lines.Text(), ") ")
		if version, ok := strings.CutPrefix(text, "Version: "); ok {
			h.CRIUVersion, _, _ = strings.Cut(version, " ")
		}
		if host, ok := strings.CutPrefix(text, "Running on "); ok {
			if name, rest, ok := strings.Cut(host, " Linux "); ok {
				h.Hostname = name
				h.Kernel, _, _ = strings.Cut(rest, " ")
			}
			return
		}
	}
}

// criuOptions are the options that a restore of these images needs.
func (i *importing) criuOptions() criu.Options {
	root := i.state.processes[0]
	o := criu.Options{
		ShellJob: root.SID != root.PID, // its session leader is outside of the tree
		TCPClose: i.state.inventory.GetTcpClose(),
	}
	for _, f := range i.state.files {
		if sk := f.GetIsk(); sk != nil && sk.GetProto() == unix.IPPROTO_TCP && sk.GetState() != tcpListen && sk.GetState() != tcpClose {
			o.TCPEstablished = !o.TCPClose
		}
		if f.GetUsk().GetUflags()&unixExternal != 0 {
			o.ExtUnixSk = true
		}
	}
	if locks, err := readImage(i.layers.top(), "filelocks.img", maxState); err == nil {
		_ = criu.Entries(locks, criu.MagicLocks, func([]byte) error { o.FileLocks = true; return nil })
	}
	return o
}

const (
	tcpClose     = 7  // states of net/tcp_states.h
	tcpListen    = 10 //
	unixExternal = 1  // USK_EXTERN: the other end is outside of the tree
)

// tcpStates are the words for states of TCP that manifests have (package proc).
var tcpStates = map[uint32]string{
	1: "established", 2: "syn-sent", 3: "syn-received", 4: "fin-wait-1", 5: "fin-wait-2", 6: "time-wait", 7: "close", 8: "close-wait",
	9: "last-ack", 10: "listen", 11: "closing", 12: "syn-received",
}

// describe sums a process up.
func (i *importing) describe(p *process) image.Process {
	d := image.Process{PID: p.PID, PPID: p.PPID, Comm: p.core.GetTc().GetComm(), State: "S", Threads: p.Threads}
	switch p.core.GetTc().GetTaskState() {
	case taskDead:
		d.State = "Z"
	case taskStopped:
		d.State = "T"
	}
	d.OwnNamespaces = ownNamespaces(p.ids, i.state.inventory.GetRootIds())
	if p.mm == nil {
		return d
	}
	d.Exe = i.state.files[p.mm.GetExeFileId()].GetReg().GetName()
	d.Cmdline = p.cmdline()
	d.Mappings = map[string]image.Mapping{}
	for _, a := range p.mm.GetVmas() {
		if a.GetStatus()&criu.AreaGuard != 0 {
			continue
		}
		kind := kindOf(a)
		sum := d.Mappings[kind]
		sum.Count++
		sum.Bytes += a.GetEnd() - a.GetStart()
		d.Mappings[kind] = sum
	}
	for _, fd := range p.fds {
		i.addDescriptor(&d, fd)
	}
	return d
}

// ownNamespaces are the namespaces that a process did not share with the CRIU that dumped it.
func ownNamespaces(ids, root *criu_core.TaskKobjIdsEntry) []string {
	if ids == nil || root == nil {
		return nil
	}
	var list []string
	for _, ns := range []struct {
		kind string
		id   func(*criu_core.TaskKobjIdsEntry) uint32
	}{
		{"cgroup", (*criu_core.TaskKobjIdsEntry).GetCgroupNsId}, {"ipc", (*criu_core.TaskKobjIdsEntry).GetIpcNsId},
		{"mnt", (*criu_core.TaskKobjIdsEntry).GetMntNsId}, {"net", (*criu_core.TaskKobjIdsEntry).GetNetNsId},
		{"pid", (*criu_core.TaskKobjIdsEntry).GetPidNsId}, {"time", (*criu_core.TaskKobjIdsEntry).GetTimeNsId},
		{"user", (*criu_core.TaskKobjIdsEntry).GetUserNsId}, {"uts", (*criu_core.TaskKobjIdsEntry).GetUtsNsId},
	} {
		if own, roots := ns.id(ids), ns.id(root); own != 0 && own != roots {
			list = append(list, ns.kind)
		}
	}
	return list
}

// maxArguments bounds a command line, in bytes.
const maxArguments = 64 << 10

// cmdline reads the arguments where the process has them, in its memory.
func (p *process) cmdline() []string {
	from, to := p.mm.GetMmArgStart(), p.mm.GetMmArgEnd()
	if to <= from || to-from > maxArguments {
		return nil
	}
	text := make([]byte, to-from)
	for _, s := range p.space {
		if s.end() <= from || s.start >= to {
			continue
		}
		begin, end := max(from, s.start), min(to, s.end())
		if s.in.readPages(text[begin-from:end-from], s.at+int64(begin-s.start)) != nil {
			return nil // it is for people only
		}
	}
	var words []string
	for word := range bytes.SplitSeq(bytes.TrimRight(text, "\x00"), []byte{0}) {
		words = append(words, strings.ToValidUTF8(string(word), "�"))
	}
	return words
}

// kindOf names the kind of a mapping as package proc does.
func kindOf(a *vma.VmaEntry) string {
	status := a.GetStatus()
	for _, k := range []struct {
		bits uint32
		name string
	}{
		{criu.AreaHeap, "heap"}, {criu.AreaStack, "stack"}, {criu.AreaVDSO | criu.AreaVVAR | criu.AreaVsyscall, "kernel"}, {criu.AreaSysV, "sysv-shm"}, {criu.AreaMemfd, "memfd"},
	} {
		if status&k.bits != 0 {
			return k.name
		}
	}
	switch {
	case a.GetFlags()&unix.MAP_HUGETLB != 0:
		return "hugetlb"
	case a.GetFlags()&unix.MAP_GROWSDOWN != 0:
		return "stack"
	case status&criu.AreaAnonShared != 0:
		return "shared-anonymous"
	case status&criu.AreaFileShared != 0:
		return "file-shared"
	case status&criu.AreaFilePrivate != 0:
		return "file-private"
	}
	return "anonymous"
}

// addDescriptor adds a file or socket.
func (i *importing) addDescriptor(d *image.Process, fd *fdinfo.FdinfoEntry) {
	number, file := int(fd.GetFd()), i.state.files[fd.GetId()]
	switch fd.GetType() {
	case fdinfo.FdTypes_INETSK:
		if sk := file.GetIsk(); sk != nil {
			d.Sockets = append(d.Sockets, inetSocket(number, sk))
		}
	case fdinfo.FdTypes_UNIXSK:
		if sk := file.GetUsk(); sk != nil {
			d.Sockets = append(d.Sockets, unixSocket(number, sk))
		}
	case fdinfo.FdTypes_NETLINKSK, fdinfo.FdTypes_PACKETSK:
		protocol := map[fdinfo.FdTypes]string{fdinfo.FdTypes_NETLINKSK: "netlink", fdinfo.FdTypes_PACKETSK: "packet"}[fd.GetType()]
		d.Sockets = append(d.Sockets, image.Socket{FD: number, Protocol: protocol})
	case fdinfo.FdTypes_REG:
		d.Files = append(d.Files, image.OpenFile{FD: number, Path: file.GetReg().GetName()})
	default:
		d.Files = append(d.Files, image.OpenFile{FD: number, Path: fmt.Sprintf("%s:[%d]", strings.ToLower(fd.GetType().String()), fd.GetId())})
	}
}

func inetSocket(fd int, sk *sk_inet.InetSkEntry) image.Socket {
	protocol := map[uint32]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_UDPLITE: "udplite",
		unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmp"}[sk.GetProto()]
	if protocol == "" {
		protocol = "raw"
	}
	if sk.GetFamily() == unix.AF_INET6 {
		protocol += "6"
	}
	s := image.Socket{FD: fd, Protocol: protocol, State: tcpStates[sk.GetState()]}
	s.Local = addressOf(sk.GetSrcAddr(), sk.GetSrcPort())
	if sk.GetDstPort() != 0 {
		s.Remote = addressOf(sk.GetDstAddr(), sk.GetDstPort())
	}
	return s
}

// addressOf reads an address that is kept in words of network order, as they lie in memory.
func addressOf(words []uint32, port uint32) string {
	raw := make([]byte, 0, 16)
	for _, w := range words {
		raw = append(raw, byte(w), byte(w>>8), byte(w>>16), byte(w>>24))
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok || port > 1<<16-1 {
		return ""
	}
	return netip.AddrPortFrom(addr, uint16(port)).String()
}

func unixSocket(fd int, sk *sk_unix.UnixSkEntry) image.Socket {
	s := image.Socket{FD: fd, Protocol: "unix", State: map[uint32]string{1: "established", 10: "listen"}[sk.GetState()]}
	name := sk.GetName()
	if len(name) > 0 && name[0] == 0 {
		name = append([]byte("@"), name[1:]...)
	}
	s.Local = strings.ToValidUTF8(strings.TrimRight(string(name), "\x00"), "�")
	return s
}

// x86Words has some words of CRIU's list of x86 capabilities, with the names of /proc/cpuinfo by bit: those whose place in the list
// was seen on a real processor. A name too few makes a restore warn of less, one too many would make it fail.
var x86Words = map[int][32]string{
	0: {"fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "sep", "mtrr", "pge", "mca", "cmov",
		"pat", "pse36", "pn", "clflush", "", "dts", "acpi", "mmx", "fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64", "pbe"},
	4: {"pni", "pclmulqdq", "dtes64", "monitor", "ds_cpl", "vmx", "smx", "est", "tm2", "ssse3", "cid", "sdbg", "fma", "cx16", "xtpr", "pdcm",
		"", "pcid", "dca", "sse4_1", "sse4_2", "x2apic", "movbe", "popcnt", "tsc_deadline_timer", "aes", "xsave", "", "avx", "f16c", "rdrand", "hypervisor"},
	6: {"lahf_lm", "cmp_legacy", "svm", "extapic", "cr8_legacy", "abm", "sse4a", "misalignsse", "3dnowprefetch", "osvw", "ibs", "xop", "skinit", "wdt", "", "lwp",
		"fma4", "tce", "", "nodeid_msr", "", "tbm"},
	9: {"fsgsbase", "tsc_adjust", "", "bmi1", "hle", "avx2", "", "smep", "bmi2", "erms", "invpcid", "rtm", "cqm", "mpx", "rdt_a", "",
		"avx512f", "avx512dq", "rdseed", "adx", "smap", "avx512ifma", "", "clflushopt", "clwb", "intel_pt", "avx512pf", "avx512er", "avx512cd", "sha_ni", "avx512bw", "avx512vl"},
}

// x86Features names what is set in CRIU's list of capabilities.
func x86Features(words []uint32) []string {
	var list []string
	for n, word := range words {
		names, known := x86Words[n]
		if !known {
			continue
		}
		for bit, name := range names {
			if word>>bit&1 != 0 && name != "" {
				list = append(list, name)
			}
		}
	}
	return list
}
