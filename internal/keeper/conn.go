package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// maxText bounds what is read from the other side: the list of processes and
	// lost pages of a very large tree.
	maxText = 16 << 20
	// maxFDs is how many descriptors the kernel passes with one message
	// (SCM_MAX_FD).
	maxFDs = 253
	// maxTree bounds the descriptors of one message series: the limit of open
	// files comes first.
	maxTree = 1 << 16
)

// conn is one connection, on either side. A message on it is the length of its
// text and the number of its descriptors, the text, and for each group of
// descriptors one byte that carries them.
type conn struct{ fd int }

func (c *conn) close() { unix.Close(c.fd) }

// dial connects to the keeper of a tree.
func dial(root int, start uint64) (*conn, error) {
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	path := socketPath(root, start)
	switch err := again(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) }); {
	case err == nil:
		return &conn{fd}, nil
	case errors.Is(err, unix.ECONNREFUSED):
		_ = unix.Unlink(path) // its keeper was killed
		fallthrough
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		unix.Close(fd)
		return nil, ErrNone
	default:
		unix.Close(fd)
		return nil, fmt.Errorf("talk to the tracker of process %d: %w", root, err)
	}
}

func listen(path string) (int, error) {
	fd, err := socket()
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if err := unix.Listen(fd, 16); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// socket makes one whose calls end some time.
func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	if err := limitTime(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	return fd, nil
}

// again repeats a call that a signal has interrupted. On sockets with a limit of
// time the kernel does not do so by itself (signal(7)), and Go's runtime sends
// signals to its own threads.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func limitTime(fd int) error {
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
}

func (c *conn) send(v any, fds []int) error {
	text, err := encode(v)
	if err != nil {
		return err
	}
	var head [8]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(text)))
	binary.LittleEndian.PutUint32(head[4:], uint32(len(fds)))
	if err := c.write(head[:]); err != nil {
		return err
	}
	if err := c.write(text); err != nil {
		return err
	}
	for len(fds) > 0 {
		n := min(len(fds), maxFDs)
		rights := unix.UnixRights(fds[:n]...)
		if err := again(func() error { return unix.Sendmsg(c.fd, []byte{0}, rights, nil, unix.MSG_NOSIGNAL) }); err != nil {
			return fmt.Errorf("pass the descriptors of trackers: %w", err)
		}
		fds = fds[n:]
	}
	return nil
}

func (c *conn) write(p []byte) error {
	for len(p) > 0 {
		n, err := unix.SendmsgN(c.fd, p, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("talk to a tracker: %w", err)
		}
		p = p[n:]
	}
	return nil
}

// receive reads one message into v. The descriptors are the caller's, also when
// there is an error.
func (c *conn) receive(v any) (fds []int, err error) {
	var head [8]byte
	if err := c.read(head[:]); err != nil {
		return nil, err
	}
	length, count := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[4:])
	if length > maxText || count > maxTree {
		return nil, fmt.Errorf("a message to or from a tracker has %d bytes and %d descriptors, more than can be", length, count)
	}
	text := make([]byte, length)
	if err := c.read(text); err != nil {
		return nil, err
	}
	for len(fds) < int(count) {
		more, err := c.readFDs()
		fds = append(fds, more...)
		if err != nil {
			return fds, err
		}
	}
	if len(fds) != int(count) {
		return fds, fmt.Errorf("%d descriptors of trackers came instead of %d", len(fds), count)
	}
	return fds, json.Unmarshal(text, v)
}

func (c *conn) read(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Read(c.fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("talk to a tracker: %w", err)
		}
		if n == 0 {
			return errEnded
		}
		p = p[n:]
	}
	return nil
}

var errEnded = errors.New("talk to a tracker: the other side has ended")

// readFDs reads the byte that carries one group of descriptors.
func (c *conn) readFDs() ([]int, error) {
	var mark [1]byte
	control := make([]byte, unix.CmsgSpace(4*maxFDs))
	var n, controls, flags int
	err := again(func() (err error) {
		n, controls, flags, _, err = unix.Recvmsg(c.fd, mark[:], control, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("receive the descriptors of trackers: %w", err)
	}
	if n == 0 {
		return nil, errEnded
	}
	messages, err := unix.ParseSocketControlMessage(control[:controls])
	if err != nil {
		return nil, fmt.Errorf("receive the descriptors of trackers: %w", err)
	}
	var fds []int
	for _, m := range messages {
		if some, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, some...)
		}
	}
	if len(fds) == 0 || flags&unix.MSG_CTRUNC != 0 {
		return fds, errors.New("receive the descriptors of trackers: some are missing: is the limit of open files too low?")
	}
	return fds, nil
}
