package health

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/subject"
	"stasis/internal/uffd"
)

// folderVariable names the folder of a test to its subject.
const folderVariable = "STASIS_TEST_FOLDER"

func TestMain(m *testing.M) {
	all := make(map[string]subject.Role, len(roles))
	for name, prepare := range roles {
		all[name] = func(say func(string, ...any), hear func() (string, bool)) {
			os.Setenv("GODEBUG", "multipathtcp=0")
			fd, err := prepare(os.Getenv(folderVariable))
			if err != nil {
				say("%d %v", -1, err)
				return
			}
			say("%d ready", fd)
			hear()
		}
	}
	subject.Main(m, all)
}

// kept is what a subject has open.
var kept []any

func keep[T any](what T, err error) (T, error) {
	kept = append(kept, what)
	return what, err
}

func raw(number uintptr, a, b, c, d uintptr) (int, error) {
	fd, _, errno := unix.Syscall6(number, a, b, c, d, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// roles are programs of which CRIU can dump some. Each returns the descriptor
// that matters, or 0.
var roles = map[string]func(dir string) (int, error){
	"job":   func(string) (int, error) { return 0, nil },
	"clean": clean,
	"io_uring": func(string) (int, error) {
		params := make([]byte, 120)
		return raw(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params[0])), 0, 0)
	},
	"userfaultfd": func(string) (int, error) {
		fd, err := uffd.New(0)
		if err != nil {
			return 0, err
		}
		return fd.Fd(), nil
	},
	"perf": func(string) (int, error) {
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY}
		attr.Size = uint32(unsafe.Sizeof(attr))
		return unix.PerfEventOpen(&attr, 0, -1, -1, 0)
	},
	"bpf": func(string) (int, error) {
		attr := [18]uint32{2, 4, 8, 1} // an array of one element
		return raw(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr[0])), unsafe.Sizeof(attr), 0)
	},
	"packets": func(string) (int, error) {
		var ends [2]int
		err := unix.Pipe2(ends[:], unix.O_DIRECT)
		return ends[1], err // the end that is written to has the flag
	},
	"queue": func(string) (int, error) {
		name := append([]byte("stasis-test-queue"), 0)
		at := uintptr(unsafe.Pointer(&name[0]))
		defer raw(unix.SYS_MQ_UNLINK, at, 0, 0, 0)
		return raw(unix.SYS_MQ_OPEN, at, unix.O_CREAT|unix.O_RDWR, 0o600, 0)
	},
	"secret": func(string) (int, error) { return raw(unix.SYS_MEMFD_SECRET, 0, 0, 0, 0) },
	"vsock":  func(string) (int, error) { return unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) },
	"fuse":   func(string) (int, error) { return unix.Open("/dev/fuse", unix.O_RDWR, 0) },
	"lock": func(dir string) (int, error) {
		fd, err := unix.Open(filepath.Join(dir, "locked"), unix.O_CREAT|unix.O_RDWR, 0o600)
		if err != nil {
			return 0, err
		}
		return fd, unix.Flock(fd, unix.LOCK_EX)
	},
	"ghost": func(dir string) (int, error) {
		path := filepath.Join(dir, "deleted")
		if err := os.WriteFile(path, make([]byte, 3<<20), 0o600); err != nil {
			return 0, err
		}
		fd, err := unix.Open(path, unix.O_RDONLY, 0)
		os.Remove(path)
		return fd, err
	},
	"renamed": func(dir string) (int, error) {
		path := filepath.Join(dir, "old")
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR, 0o600)
		os.Link(path, filepath.Join(dir, "new"))
		os.Remove(path)
		return fd, err
	},
	"tcp": func(string) (int, error) {
		l, err := keep(net.Listen("tcp", "127.0.0.1:0"))
		if err != nil {
			return 0, err
		}
		if _, err := keep(net.Dial("tcp", l.Addr().String())); err != nil {
			return 0, err
		}
		_, err = keep(l.Accept())
		return 0, err
	},
	"waiting": func(string) (int, error) {
		l, err := keep(net.Listen("tcp", "127.0.0.1:0"))
		if err != nil {
			return 0, err
		}
		_, err = keep(net.Dial("tcp", l.Addr().String()))
		return 0, err
	},
	"unix": func(dir string) (int, error) {
		c, err := keep(net.Dial("unix", filepath.Join(dir, "stream")))
		if err != nil {
			return 0, err
		}
		_, err = c.Read(make([]byte, 8)) // the other end has accepted it
		return 0, err
	},
	"unaccepted": func(dir string) (int, error) {
		_, err := keep(net.Dial("unix", filepath.Join(dir, "busy")))
		return 0, err
	},
	"datagram": func(dir string) (int, error) {
		_, err := keep(net.Dial("unixgram", filepath.Join(dir, "dgram")))
		return 0, err
	},
	"terminal": func(dir string) (int, error) {
		return unix.Open(os.Getenv("STASIS_TEST_TTY"), unix.O_RDWR|unix.O_NOCTTY, 0)
	},
	"sysv": func(string) (int, error) {
		id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, 0o600)
		if err != nil {
			return 0, err
		}
		defer unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		_, err = unix.SysvShmAttach(id, 0, 0)
		return 0, err
	},
	"other user": func(string) (int, error) { return 0, unix.Setuid(65534) },
	"nested": func(string) (int, error) {
		cmd := exec.Command("unshare", "--uts", "sh", "-c", "echo there; exec sleep 1000")
		cmd.SysProcAttr = diesWithParent()
		out, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if _, err := keep(cmd, cmd.Start()); err != nil {
			return 0, err
		}
		_, err = out.Read(make([]byte, 5))
		return 0, err
	},
}

// clean has much open that CRIU can dump.
func clean(dir string) (int, error) {
	epoll, err := unix.EpollCreate1(0)
	if err != nil {
		return 0, err
	}
	event, _ := unix.Eventfd(0, 0)
	unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Fd: int32(event)})
	unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0)
	inotify, _ := unix.InotifyInit()
	unix.InotifyAddWatch(inotify, dir, unix.IN_CREATE)
	unix.MemfdCreate("memory", 0)
	unix.Open("/dev/null", unix.O_RDWR, 0)
	unix.Open("/dev/urandom", unix.O_RDONLY, 0)
	unix.Open("/proc/self/status", unix.O_RDONLY, 0)
	unix.Open(dir, unix.O_PATH, 0)
	unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
	unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600)
	unix.Open(filepath.Join(dir, "fifo"), unix.O_RDWR, 0)
	path := filepath.Join(dir, "small")
	os.WriteFile(path, []byte("small"), 0o600)
	unix.Open(path, unix.O_RDONLY, 0)
	os.Remove(path) // CRIU keeps small ones
	keep(net.Listen("tcp", "127.0.0.1:0"))
	keep(net.Listen("unix", filepath.Join(dir, "own")))
	keep(net.Dial("unix", filepath.Join(dir, "own")))
	for child, state := range map[string]int{"exit 0": unix.WEXITED, "kill -STOP $$": unix.WSTOPPED} {
		cmd := exec.Command("sh", "-c", child)
		cmd.SysProcAttr = diesWithParent()
		if _, err := keep(cmd, cmd.Start()); err != nil {
			return 0, err
		}
		if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, state|unix.WNOWAIT, nil); err != nil {
			return 0, err
		}
	}
	return 0, nil
}
