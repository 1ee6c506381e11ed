package pageserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// client is a connection. It belongs to one goroutine at a time.
type client struct {
	conn   net.Conn
	in     *bufio.Reader
	layout layout
	idle   time.Duration // how long the peer may be silent, or not listen; 0: for ever
	buf    [longLayout]byte
}

func newClient(conn net.Conn, idle time.Duration) *client {
	return &client{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), idle: idle}
}

// name tells people who it is.
func (c *client) name() string {
	if a := c.conn.RemoteAddr(); a != nil && a.String() != "" {
		return a.String()
	}
	return "the peer"
}

// errLeft says that the peer closed the connection between two messages.
var errLeft = errors.New("it closed the connection without saying that all was sent: its dump failed, or the connection was lost")

// fill reads p whole. The end of the connection before the first byte is io.EOF.
func (c *client) fill(p []byte) error {
	if c.idle > 0 {
		if err := c.conn.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
			return err
		}
	}
	n, err := io.ReadFull(c.in, p)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it sent %d of %d bytes in %v, the time that it has", n, len(p), c.idle)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection ended in the middle of a message")
	}
	return fmt.Errorf("the connection was lost: %w", err)
}

// firstHead reads the first message, which tells the layout.
func (c *client) firstHead() (head, error) {
	b := c.buf[:shortLayout]
	if err := c.fill(b); err != nil {
		return head{}, err
	}
	l, err := layoutOf(b)
	if err != nil {
		return head{}, err
	}
	if c.layout = l; l == longLayout {
		if err := c.fill(c.buf[shortLayout:longLayout]); err != nil {
			return head{}, middle(err)
		}
	}
	if l == unknownLayout {
		return decodeHead(shortLayout, b), nil
	}
	return decodeHead(l, c.buf[:l]), nil
}

// nextHead reads a further message.
func (c *client) nextHead() (head, error) {
	b := c.buf[:c.layout]
	if err := c.fill(b); err != nil {
		if errors.Is(err, io.EOF) {
			err = errLeft
		}
		return head{}, err
	}
	return decodeHead(c.layout, b), nil
}

// content reads what belongs to a message.
func (c *client) content(p []byte) error { return middle(c.fill(p)) }

// middle makes an error of an end that comes too early.
func middle(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the connection ended in the middle of a message")
	}
	return err
}

// send sends an answer.
func (c *client) send(p []byte) error {
	if c.idle > 0 {
		if err := c.conn.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
			return err
		}
	}
	if _, err := c.conn.Write(p); err != nil {
		return fmt.Errorf("the connection was lost: %w", err)
	}
	return nil
}

// sendStatus answers the end of a session.
func (c *client) sendStatus(status int32) error { return c.send(le.AppendUint32(nil, uint32(status))) }

// hangUpWithin bounds the wait for a peer that has its answer to close the connection.
const hangUpWithin = 5 * time.Second

// waitForEnd waits until the peer closes the connection, as CRIU's server does: the one that closes first has to remember the
// connection for a minute, and the answer could be lost were it closed with something unread.
func (c *client) waitForEnd() {
	if err := c.conn.SetReadDeadline(time.Now().Add(hangUpWithin)); err == nil {
		_, _ = io.CopyN(io.Discard, c.in, 64) // the rest of a head whose layout was unknown
	}
}
