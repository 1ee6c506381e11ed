//go:build linux && (amd64 || arm64)

package pager

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// allRestored is what CRIU sends in place of a pid when all tasks are restored
// (LAZY_PAGES_RESTORE_FINISHED in CRIU's uffd.c).
const allRestored = 0x52535446

// accept takes CRIU's one connection and reads it to its end.
func (p *Pager) accept() {
	defer close(p.received)
	conn, err := p.listener.AcceptUnix()
	if err != nil {
		if !p.stopping() {
			p.fail(fmt.Errorf("cannot accept CRIU's connection for lazy pages: %w", err))
		}
		return
	}
	p.mu.Lock()
	p.conn = conn
	closed := p.closed
	p.mu.Unlock()
	if closed {
		_ = conn.Close()
		return
	}
	// CRIU that goes away without the last word has failed, and says so elsewhere.
	if err := p.receive(conn); err != nil && !p.stopping() && !errors.Is(err, io.EOF) {
		p.fail(fmt.Errorf("cannot receive CRIU's userfaultfds: %w", err))
	}
}

// receive reads what CRIU sends for each task: its pid as int32, then one
// message with the userfaultfd; for a zombie only its pid, negative. The last
// word is allRestored.
func (p *Pager) receive(conn *net.UnixConn) error {
	var word [4]byte
	for {
		if _, err := io.ReadFull(conn, word[:]); err != nil {
			return err
		}
		n := binary.NativeEndian.Uint32(word[:])
		if n == allRestored {
			return nil
		}
		pid := int(int32(n))
		if pid < 0 {
			continue
		}
		fd, err := receiveFD(conn)
		if err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
		if err := p.admit(pid, fd); err != nil {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
}

// receiveFD takes the descriptor out of the next message, whose data is one byte without meaning.
func receiveFD(conn *net.UnixConn) (int, error) {
	var dummy [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(dummy[:], oob)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("no userfaultfd came with the pid: is this CRIU 4 or newer?")
}

// admit makes a task of what CRIU sent. It owns fd, also when it fails.
func (p *Pager) admit(pid, fd int) error {
	t, err := p.newTask(pid, fd)
	if err != nil {
		return err
	}
	select {
	case <-p.ready:
	case <-p.stop:
	}
	if p.stopping() || p.src == nil {
		return errors.Join(errClosed, t.file.Close())
	}
	for _, r := range p.src.Ranges(pid) {
		t.layout.insert(span{r.Start, r.End, r.Start})
	}
	if err := p.join(t); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pids = append(p.pids, pid)
	if p.awaits[pid] {
		delete(p.awaits, pid)
		if len(p.awaits) == 0 {
			close(p.arrived)
		}
	}
	return nil
}
