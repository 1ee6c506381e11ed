package inject

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// Helper runs system calls in other processes from a process of its own, which
// outlives Stasis by as long as the call at hand takes. If the process that holds
// a thread with ptrace is killed, the kernel lets the thread go with whatever
// registers it has: a thread that was just made to run a system call would go on
// in the middle of the vdso, and crash.
//
// The helper is this executable once more, with the name stasis-inject, which
// this package's init notices before main runs. Its methods may be called from
// several goroutines at once; calls are made one after the other.
type Helper struct {
	cmd *exec.Cmd

	mu     sync.Mutex
	socket int // guarded by mu; -1 after Close, and when the helper has been given up
}

const (
	helperName   = "stasis-inject"
	helperSocket = 3
	maxMessage   = 1024

	// answerLimit is how long Stasis waits for the helper. A thread that cannot go
	// on in the middle of a call, as in a control group that was frozen just then,
	// is the helper's to put back, for as long as it takes; Stasis goes on without.
	answerLimit = 30 * time.Second
)

// errNoAnswer says that the helper still works on a thread.
var errNoAnswer = fmt.Errorf("it has not come to its end within %v: is the process in a frozen control group?", answerLimit)

// What the helper says an error is, so that errors.Is still works on this side.
const (
	kindOther       = 'o'
	kindUnsupported = 'u'
	kindDispatched  = 'd'
	kindGone        = 'g'
)

// StartHelper starts a helper; Close ends it.
func StartHelper() (*Helper, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket for the helper that traces: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), helperName)
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{helperName}, Env: []string{"GOMAXPROCS=2"}, Dir: "/",
		ExtraFiles: []*os.File{theirs}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	limit := unix.NsecToTimeval(answerLimit.Nanoseconds())
	if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("limit the wait for the helper that traces: %w", err)
	}
	if err := cmd.Start(); err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("start the helper that traces, which is this program once more: %w", err)
	}
	return &Helper{cmd: cmd, socket: pair[0]}, nil
}

// Close ends the helper.
func (h *Helper) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.socket < 0 {
		return nil
	}
	unix.Close(h.socket)
	h.socket = -1
	return h.cmd.Wait()
}

// receive waits for the helper's answer. A helper that gives none is left to what
// it does. The caller holds mu.
func (h *Helper) receive() (message string, fd int, err error) {
	message, fd, err = receive(h.socket)
	if errors.Is(err, unix.EAGAIN) {
		unix.Close(h.socket)
		h.socket = -1
		go func() { _ = h.cmd.Wait() }()
		err = errNoAnswer
	}
	return message, fd, err
}

// Userfaultfd is [Userfaultfd], done by the helper.
func (h *Helper) Userfaultfd(pid, flags int) (fd int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	lost := func(err error) (int, error) {
		return -1, fmt.Errorf("the helper that traces process %d: %w", pid, err)
	}
	if err := unix.Sendmsg(h.socket, fmt.Appendf(nil, "%d %d", pid, flags), nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return lost(err)
	}
	message, fd, err := h.receive()
	if err != nil {
		return lost(err)
	}
	if fd >= 0 {
		return fd, nil
	}
	return -1, decodeError(message)
}

// receive reads one message, and the descriptor that came with it, or -1.
func receive(socket int) (message string, fd int, err error) {
	raw, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	for {
		n, oobn, _, _, err = unix.Recvmsg(socket, raw, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return "", -1, err
	}
	if n == 0 {
		return "", -1, errors.New("it has ended")
	}
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			return string(raw[:n]), fds[0], nil
		}
	}
	return string(raw[:n]), -1, nil
}

// farError is an error of the helper's.
type farError struct {
	text string
	is   []error
}

func (e *farError) Error() string   { return e.text }
func (e *farError) Unwrap() []error { return e.is }

func encodeError(err error) string {
	kind := kindOther
	switch {
	case errors.Is(err, proc.ErrGone):
		kind = kindGone
	case errors.Is(err, ErrDispatched):
		kind = kindDispatched
	case errors.Is(err, ErrUnsupported):
		kind = kindUnsupported
	}
	var errno unix.Errno
	errors.As(err, &errno)
	text := fmt.Sprintf("%c %d %s", kind, int(errno), err)
	return text[:min(len(text), maxMessage)]
}

func decodeError(message string) error {
	var kind rune
	var errno int
	if _, err := fmt.Sscanf(message, "%c %d", &kind, &errno); err != nil {
		return fmt.Errorf("the helper that traces says %q", message)
	}
	parts := strings.SplitN(message, " ", 3)
	e := &farError{text: parts[len(parts)-1]}
	if errno != 0 {
		e.is = append(e.is, unix.Errno(errno))
	}
	switch kind {
	case kindGone:
		e.is = append(e.is, proc.ErrGone)
	case kindDispatched:
		e.is = append(e.is, ErrDispatched)
	case kindUnsupported:
		e.is = append(e.is, ErrUnsupported)
	}
	return e
}

// init turns this process into the helper if that is what it was started for.
func init() {
	if len(os.Args) != 1 || os.Args[0] != helperName {
		return
	}
	if kind, err := unix.GetsockoptInt(helperSocket, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
		return
	}
	unix.CloseOnExec(helperSocket)
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	serve()
	os.Exit(0)
}

// serve does as it is told until Stasis is gone.
func serve() {
	for {
		order, _, err := receive(helperSocket)
		if err != nil {
			return
		}
		var pid, flags int
		if n, _ := fmt.Sscanf(order, "hold %d", &pid); n == 1 {
			if serveHold(pid) != nil {
				return
			}
			continue
		}
		if _, err := fmt.Sscan(order, &pid, &flags); err != nil {
			return
		}
		fd, err := Userfaultfd(pid, flags)
		if err != nil {
			err = unix.Sendmsg(helperSocket, []byte(encodeError(err)), nil, nil, unix.MSG_NOSIGNAL)
		} else {
			err = unix.Sendmsg(helperSocket, []byte{0}, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
			unix.Close(fd)
		}
		if err != nil {
			return
		}
	}
}
