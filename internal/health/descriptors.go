package health

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

const (
	// ghostLimit is how much of a deleted file CRIU keeps without being asked.
	ghostLimit = 1 << 20
	blockSize  = 512 // what stat(2) counts blocks in

	mqueueMagic = 0x19800202 // MQUEUE_MAGIC

	// Numbers of devices (Documentation/admin-guide/devices.txt).
	memMajor, ttyMajor, ttyAuxMajor, miscMajor = 1, 4, 5, 10
	ptyMajor, ptySlaveMajor, lastPTYMajor      = 128, 136, 143
	nvidiaMajor, driMajor                      = 195, 226
	tunMinor, fuseMinor, kvmMinor, autofsMinor = 200, 229, 232, 235
	lastConsole                                = 63
)

// object is what is known about a kind of kernel object.
type object struct {
	status       Status // "": it can be dumped
	what, remedy string
}

// objects are the anonymous inodes, by the beginning of their names.
var objects = []struct {
	name string
	object
}{
	{"[eventfd]", object{}}, {"[eventpoll]", object{}}, {"inotify", object{}}, {"[fanotify]", object{}},
	{"[signalfd]", object{}}, {"[timerfd]", object{}}, {"[pidfd]", object{}},
	{"[io_uring]", object{Fail, "an io_uring, which CRIU cannot dump",
		"start the program without io_uring (for Node.js UV_USE_IO_URING=0), or set kernel.io_uring_disabled=2 before it starts"}},
	{"bpf-map", object{Warn, "a BPF map: those of the types hash and array can be dumped, by a CRIU that is built for it", "close it before the dump"}},
	{"bpf", object{Fail, "a BPF program or link, which CRIU cannot dump", "close it before the dump"}},
	{"[perf_event]", object{Fail, "a perf_event, which CRIU cannot dump", "end the profiler before the dump"}},
	{"[userfaultfd]", object{Fail, "a userfaultfd, which CRIU cannot dump", "end what uses it (another Stasis, a virtual machine) before the dump"}},
	{"kvm-", object{Fail, "a virtual machine (KVM), which CRIU cannot dump", "use the hypervisor's own snapshots"}},
	{"seccomp notify", object{Fail, "a supervisor of a seccomp filter, which CRIU cannot dump", "dump the supervised program alone"}},
	{"[landlock-ruleset]", object{Fail, "a Landlock ruleset, which CRIU cannot dump", "close it before the dump"}},
	{"[vfio", object{Fail, "a device that is passed through (VFIO), which CRIU cannot dump", "give the device back before the dump"}},
	{"sync_file", object{Fail, "a fence of a graphics card, which CRIU cannot dump", "start the program without GPU"}},
}

// knownObject looks up an anonymous inode. One that nobody knows cannot be
// dumped.
func knownObject(link string) object {
	name := strings.TrimPrefix(link, "anon_inode:")
	for _, o := range objects {
		if strings.HasPrefix(name, o.name) {
			return o.object
		}
	}
	return object{Fail, "an object of the kernel that CRIU cannot dump: " + name, "close it before the dump"}
}

// lookAtDescriptors looks at all that a process has open.
func (s *survey) lookAtDescriptors(t *proc.Task, namespaces map[string]string) error {
	files, err := proc.OpenFiles(t.PID)
	if err != nil {
		return err
	}
	defer files.Close()
	list, err := files.List()
	if err != nil {
		return err
	}
	mounts, err := s.mountsOf(t.PID, namespaces["mnt"])
	if err != nil {
		return err
	}
	for _, d := range list {
		s.descriptors++
		where := fd(t, d)
		if inode, isSocket := d.Socket(); isSocket {
			s.addSocket(t, namespaces["net"], files, d, inode)
			continue
		}
		info, err := files.Info(d.FD)
		if err != nil {
			continue // closed since it was listed
		}
		if len(info.Locks) > 0 {
			s.note(Warn, "file lock", "it holds a lock on "+d.Target, "dump and restore with --file-locks", where)
		}
		switch {
		case strings.HasPrefix(d.Target, "anon_inode:"):
			if o := knownObject(d.Target); o.status != "" {
				s.note(o.status, "descriptor", o.what, o.remedy, where)
			}
		case strings.HasPrefix(d.Target, "pipe:"):
			if info.Flags&unix.O_DIRECT != 0 {
				s.note(Fail, "descriptor", "a pipe in packet mode (O_DIRECT), which CRIU cannot dump", "close it before the dump", where)
			}
			s.addPipe(d, info.Flags, where)
		case strings.HasPrefix(d.Target, "/secretmem"):
			s.note(Fail, "descriptor", "secret memory (memfd_secret), which CRIU cannot dump", "close it before the dump", where)
		case strings.HasPrefix(d.Target, "/dmabuf:"):
			s.note(Fail, "descriptor", "a buffer of a graphics card, which CRIU cannot dump", "start the program without GPU", where)
		case d.HasPath():
			s.lookAtFile(files, d, info, mounts, where)
		}
	}
	return nil
}

// mountsOf reads the mounts of a mount namespace once.
func (s *survey) mountsOf(pid int, namespace string) (map[int]string, error) {
	if known := s.mounts[namespace]; known != nil {
		return known, nil
	}
	mounts, err := proc.Mounts(pid)
	s.mounts[namespace] = mounts
	return mounts, err
}

// lookAtFile looks at a descriptor with a path.
func (s *survey) lookAtFile(files *proc.Files, d proc.Descriptor, info proc.DescriptorInfo, mounts map[int]string, where string) {
	st, err := files.Stat(d.FD)
	if err != nil {
		return // closed since it was listed
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		s.lookAtDevice(st.Rdev, d, info, where)
		if unix.Major(st.Rdev) == memMajor {
			s.lookAtMount(d, info, mounts, where)
		}
	case unix.S_IFBLK:
		s.note(Fail, "descriptor", "the block device "+d.Target+", which CRIU cannot dump", "close it before the dump", where)
	case unix.S_IFIFO:
		s.lookAtMount(d, info, mounts, where)
	case unix.S_IFREG, unix.S_IFDIR:
		if kind, err := files.FileSystem(d.FD); err == nil && kind == mqueueMagic {
			s.note(Fail, "descriptor", "a POSIX message queue, which CRIU cannot dump", "close it before the dump", where)
			return
		}
		if strings.HasPrefix(d.Target, "/memfd:") {
			return
		}
		if !s.deleted(d, &st, where) {
			s.lookAtMount(d, info, mounts, where)
		}
	}
}

// lookAtMount: CRIU finds a file by the mount that it was opened on.
func (s *survey) lookAtMount(d proc.Descriptor, info proc.DescriptorInfo, mounts map[int]string, where string) {
	if mounts[info.MountID] == "" {
		s.note(Fail, "descriptor", "a file on a mount that the process does not see: "+d.Target,
			"close it before the dump, or dump from the mount namespace in which it was opened", where)
	}
}

// lookAtDevice looks at a character device, which mostly is a terminal.
func (s *survey) lookAtDevice(rdev uint64, d proc.Descriptor, info proc.DescriptorInfo, where string) {
	if o := device(rdev); o.status != "" {
		s.note(o.status, "descriptor", o.what+" ("+d.Target+")", o.remedy, where)
		return
	}
	if info.Terminal >= 0 {
		s.masters[info.Terminal] = true
	}
	if unix.Major(rdev) == ptySlaveMajor {
		slave := int(unix.Minor(rdev))
		if s.slaves[slave] == "" {
			s.slaves[slave] = where
		}
	}
}

// lookAtTerminals, after they were collected: a terminal whose other end is
// outside of the tree is that of a shell, and there can be one.
func (s *survey) lookAtTerminals() {
	var outside []int
	for slave := range s.slaves {
		if !s.masters[slave] {
			outside = append(outside, slave)
		}
	}
	slices.Sort(outside)
	for i, slave := range outside {
		if i == 0 {
			s.note(Warn, "terminal", fmt.Sprintf("the other end of /dev/pts/%d is outside of the tree", slave), "dump and restore with --shell-job", s.slaves[slave])
			continue
		}
		s.note(Fail, "terminal", fmt.Sprintf("/dev/pts/%d is one more terminal whose other end is outside of the tree", slave),
			"redirect it, or dump the tree that holds both ends", s.slaves[slave])
	}
}

// deleted looks at a file that has lost the name by which it was opened.
func (s *survey) deleted(d proc.Descriptor, st *unix.Stat_t, where string) bool {
	name, deleted := proc.CutDeleted(d.Target)
	if !deleted && st.Nlink > 0 {
		return false
	}
	switch stored := uint64(st.Blocks) * blockSize; {
	case st.Nlink > 0 && st.Mode&unix.S_IFMT == unix.S_IFREG:
		s.note(Warn, "deleted file", "it lost the name "+name+" and has another", "dump with --link-remap", where)
	case stored > ghostLimit:
		s.note(Warn, "deleted file", fmt.Sprintf("%s has %s", name, size(stored)), fmt.Sprintf("dump with --ghost-limit %d or more", stored), where)
	}
	return true
}

// device says whether CRIU can dump a character device.
func device(rdev uint64) object {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	const remedy = "close it before the dump"
	switch {
	case major == memMajor, major >= ptyMajor && major <= lastPTYMajor:
		return object{}
	case major == ttyAuxMajor && minor <= 2, major == ttyMajor && minor <= lastConsole:
		return object{}
	case major == miscMajor && (minor == tunMinor || minor == autofsMinor):
		return object{}
	case major == miscMajor && minor == kvmMinor:
		return object{Fail, "virtual machines (KVM), which CRIU cannot dump", "use the hypervisor's own snapshots"}
	case major == miscMajor && minor == fuseMinor:
		return object{Fail, "a file system that it serves (FUSE), which CRIU cannot dump", "unmount it before the dump"}
	case major == driMajor:
		return object{Fail, "a graphics card, which CRIU cannot dump", "start the program without GPU"}
	case major == nvidiaMajor:
		return object{Fail, "an NVIDIA card, which CRIU cannot dump by itself", "use cuda-checkpoint and CRIU's cuda plugin, or start the program without GPU"}
	case major == ttyMajor, major == ttyAuxMajor:
		return object{Fail, "a serial line, which CRIU cannot dump", remedy}
	}
	return object{Fail, fmt.Sprintf("a device that CRIU cannot dump: %d:%d", major, minor), fmt.Sprintf("close it before the dump, or give it as --external dev[%d/%d]:NAME", major, minor)}
}
