package pageserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// DefaultIdle is how long a peer may be silent. A dump of a large tree is silent between connecting and its first page.
	DefaultIdle = 5 * time.Minute

	// greetAtOnce bounds the connections that are there without having said anything of use.
	greetAtOnce = 64
)

// ServerOptions are common to Receive and Serve.
type ServerOptions struct {
	TLS  *tls.Config   // nil: in clear text
	Idle time.Duration // see DefaultIdle; 0: for ever
	// Note is told about connections that were turned away. It may be called from several goroutines at once.
	Note func(peer string, why error)
}

// accept waits for the one peer to serve: the first whose first message is one that begins says nil to. Whoever else connects and
// talks nonsense, or nothing, is turned away and is in nobody's way. Afterwards l and all other connections are closed.
func (o *ServerOptions) accept(ctx context.Context, l net.Listener, begins func(head) error) (*client, head, error) {
	type chosen struct {
		c *client
		h head
	}
	ctx, cancel := context.WithCancel(ctx)
	winner := make(chan chosen)
	failed := make(chan error, 1)
	slots := make(chan struct{}, greetAtOnce)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				failed <- err
				return
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				conn.Close()
				continue
			}
			all.Go(func() {
				defer func() { <-slots }()
				c, h, err := o.greet(ctx, conn, begins)
				if err == nil {
					select {
					case winner <- chosen{c, h}:
						return
					case <-ctx.Done():
						err = errors.New("another was first")
					}
				}
				conn.Close()
				o.turnedAway(conn, err)
			})
		}
	})
	select {
	case w := <-winner:
		return w.c, w.h, nil
	case err := <-failed:
		if cause := context.Cause(ctx); cause != nil {
			return nil, head{}, cause
		}
		return nil, head{}, fmt.Errorf("wait for a connection: %w", err)
	case <-ctx.Done():
		return nil, head{}, context.Cause(ctx)
	}
}

func (o *ServerOptions) turnedAway(conn net.Conn, why error) {
	if errors.Is(why, io.EOF) {
		why = errors.New("it left without a word")
	}
	if o.Note != nil {
		o.Note((&client{conn: conn}).name(), why)
	}
}

// greet reads the first message of a connection.
func (o *ServerOptions) greet(ctx context.Context, conn net.Conn, begins func(head) error) (*client, head, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	peer := conn
	if o.TLS != nil {
		var err error
		if peer, err = o.handshake(ctx, conn); err != nil {
			return nil, head{}, err
		}
	}
	c := newClient(peer, o.Idle)
	h, err := c.firstHead()
	if err == nil {
		err = begins(h)
	}
	return c, h, err
}

// handshakeWithin bounds the start of TLS.
const handshakeWithin = 30 * time.Second

func (o *ServerOptions) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeWithin)
	defer cancel()
	secure := tls.Server(conn, o.TLS)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return secure, nil
}

// Single is a listener that gives the one connection that is there already, as CRIU's --ps-socket has it.
func Single(conn net.Conn) net.Listener {
	s := &single{conns: make(chan net.Conn, 1), closed: make(chan struct{}), addr: conn.LocalAddr()}
	s.conns <- &singleConn{conn, s}
	return s
}

type single struct {
	conns  chan net.Conn
	closed chan struct{} // when nothing can come any more
	once   sync.Once
	addr   net.Addr
}

// singleConn ends its listener's hopes when it is closed.
type singleConn struct {
	net.Conn
	l *single
}

func (c *singleConn) Close() error { _ = c.l.Close(); return c.Conn.Close() }

func (s *single) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	default:
	}
	<-s.closed
	return nil, errors.New("the connection was of no use")
}

func (s *single) Close() error   { s.once.Do(func() { close(s.closed) }); return nil }
func (s *single) Addr() net.Addr { return s.addr }
