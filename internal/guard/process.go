//go:build linux && (amd64 || arm64)

package guard

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// processName is the guard's argv[0], and how init knows it.
const processName = "stasis-guard"

// socketFD is the guard's end of the socket.
const socketFD = 3

// init turns this process into the guard if that is what it was started for.
func init() {
	if len(os.Args) != 1 || os.Args[0] != processName || !isSocket(socketFD) {
		return
	}
	unix.CloseOnExec(socketFD)
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	w := watch{}
	if w.listen() {
		w.fire()
	}
	os.Exit(0)
}

func isSocket(fd int) bool {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	return err == nil && kind == unix.SOCK_SEQPACKET
}

// watch is the guard's state.
type watch struct {
	watched  []process
	expected []file // that marks who is watched too
	held     []int  // until they are released
	kept     []int
}

// listen does as it is told until the end. It reports whether that is a bad
// one: told so, or the other side gone without a word.
func (w *watch) listen() (bad bool) {
	message, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	for {
		var n, oob int
		err := retry(func() (err error) {
			n, oob, _, _, err = unix.Recvmsg(socketFD, message, rights, unix.MSG_CMSG_CLOEXEC)
			return err
		})
		if err != nil || n == 0 {
			return true
		}
		fd := descriptor(rights[:oob])
		switch message[0] {
		case opWatch:
			err = w.add(string(message[1:n]), fd)
		case opExpect:
			err = w.expect(string(message[1:n]))
		case opHold:
			err = hold(&w.held, fd)
		case opKeep:
			err = hold(&w.kept, fd)
		case opRelease:
			release(&w.held)
		case opDisarm:
			answer(nil)
			return false
		case opFire:
			w.fire()
			answer(nil)
			return false
		default:
			err = fmt.Errorf("unknown message %q", message[0])
		}
		answer(err)
	}
}

// answer sends a null byte, and the error if there is one.
func answer(err error) {
	text := []byte{0}
	if err != nil {
		text = append(text, err.Error()...)
	}
	_ = unix.Sendmsg(socketFD, text[:min(len(text), maxMessage)], nil, nil, unix.MSG_NOSIGNAL)
}

// descriptor takes the descriptor out of a message, -1 if there is none.
func descriptor(rights []byte) int {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1
	}
	return fds[0]
}

func (w *watch) add(text string, fd int) error {
	pid, err := strconv.Atoi(text)
	if err != nil || fd < 0 {
		return fmt.Errorf("no process to watch in %q", text)
	}
	w.watched = append(w.watched, process{pid, fd})
	return nil
}

func (w *watch) expect(text string) error {
	var f file
	if _, err := fmt.Sscan(text, &f.device, &f.inode, &f.name); err != nil {
		return fmt.Errorf("no file to expect processes by in %q: %w", text, err)
	}
	w.expected = append(w.expected, f)
	return nil
}

func hold(list *[]int, fd int) error {
	if fd < 0 {
		return fmt.Errorf("no descriptor came: is the limit of open files (RLIMIT_NOFILE) reached?")
	}
	*list = append(*list, fd)
	return nil
}

// release closes what is on a list.
func release(list *[]int) {
	for _, fd := range *list {
		_ = unix.Close(fd)
	}
	*list = nil
}
