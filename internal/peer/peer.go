// Package peer says who calls: the identity of a daemon's client, as the kernel or a certificate vouches for it, in the context of
// the call.
//
// Words: a peer is the process at the other end of a connection; its user is the effective one at the time of connect(2). A right
// never depends on the peer's process id, which may be another's by the time that it is looked at.
//
// Everything may be called from several goroutines at once.
package peer

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Peer is who calls.
type Peer struct {
	UID, GID uint32
	PID      int32  // for logs; 0 where it is not known
	Name     string // of the certificate, for a peer over TLS
}

// Root says whether the peer may do everything.
func (p Peer) Root() bool { return p.UID == 0 }

// May says whether the peer may act on what belongs to a user.
func (p Peer) May(uid uint32) bool { return p.Root() || p.UID == uid }

func (p Peer) String() string {
	if p.Name != "" {
		return fmt.Sprintf("%s (user %d)", p.Name, p.UID)
	}
	return fmt.Sprintf("user %d (process %d)", p.UID, p.PID)
}

// Of asks the kernel who is at the other end of a Unix socket (SO_PEERCRED, unix(7)).
func Of(conn *net.UnixConn) (Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("ask who is at the other end of a socket: %w", err)
	}
	var found *unix.Ucred
	var askErr error
	if err := raw.Control(func(fd uintptr) {
		found, askErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, fmt.Errorf("ask who is at the other end of a socket: %w", err)
	}
	if askErr != nil {
		return Peer{}, fmt.Errorf("ask who is at the other end of a socket: %w", askErr)
	}
	return Peer{UID: found.Uid, GID: found.Gid, PID: found.Pid}, nil
}

type key struct{}

// With puts a peer into the context of its calls.
func With(ctx context.Context, p Peer) context.Context { return context.WithValue(ctx, key{}, p) }

// From gives the peer of a call. Where there is none, nobody may do anything.
func From(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(key{}).(Peer)
	return p, ok
}
