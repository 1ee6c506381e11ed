package stasis

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"stasis/internal/image"
	"stasis/internal/proc"
)

const (
	// closingLimit bounds the wait for the old ends of connections. They go as
	// soon as the peer has confirmed the end: after one round trip, unless the
	// peer is dead.
	closingLimit = 3 * time.Second
	closingPause = 5 * time.Millisecond
)

// checkPorts finds TCP ports that the tree listens on and that others have
// taken. Those of a network namespace that is restored with it are free.
func (c *conflicts) checkPorts(m *Manifest) {
	wanted := make(map[netip.AddrPort]image.Process)
	for _, p := range m.Processes {
		if slices.Contains(p.OwnNamespaces, "net") {
			continue
		}
		for _, s := range p.Sockets {
			if address, err := netip.ParseAddrPort(s.Local); err == nil && s.State == "listen" && strings.HasPrefix(s.Protocol, "tcp") {
				if _, known := wanted[address]; !known {
					wanted[address] = p
				}
			}
		}
	}
	if len(wanted) == 0 {
		return
	}
	listeners, err := proc.Listeners()
	if err != nil {
		return // CRIU will say so
	}
	for address, p := range wanted {
		at := slices.IndexFunc(listeners, func(l proc.Listener) bool { return collide(address, l.Address) })
		if at < 0 {
			continue
		}
		inode, who := listeners[at].Inode, "another program"
		owner, known := proc.SocketOwners(map[uint64]bool{inode: true})[inode]
		if c.holders[owner.PID] {
			continue // it has to end for its pid already
		}
		if known {
			who = fmt.Sprintf("process %d (%s)", owner.PID, owner.Comm)
		}
		c.object("process %d (%s) of the tree listens on %s, which %s has taken: end that program", p.PID, p.Comm, address, who)
	}
}

// collide says whether two sockets cannot listen at once. Whether an IPv6
// socket takes the IPv4 port as well cannot be seen from outside.
func collide(a, b netip.AddrPort) bool {
	if a.Port() != b.Port() || a.Addr().Is4() != b.Addr().Is4() {
		return false
	}
	return a.Addr() == b.Addr() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified()
}

// checkConnections finds connections of the tree whose old ends are there
// still: a program that was killed a moment ago leaves them to the kernel until
// its peers have heard of the end, and CRIU cannot put a second one beside them.
// Those of killed programs are waited for.
func (c *conflicts) checkConnections(ctx context.Context, m *Manifest) error {
	wanted := connectionsOf(m)
	if len(wanted) == 0 {
		return nil
	}
	for begun := time.Now(); ; {
		list, err := proc.Connections()
		if err != nil {
			c.warn("whether its connections are free cannot be seen: %v", err)
			return nil
		}
		list = slices.DeleteFunc(list, func(x proc.Connection) bool { return !wanted[ends{x.Local, x.Remote}] })
		owned := slices.ContainsFunc(list, func(x proc.Connection) bool { return x.Inode != 0 })
		if len(list) == 0 || owned || time.Since(begun) > closingLimit {
			c.tellConnections(list)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the ends of old connections: %w", ctx.Err())
		case <-time.After(closingPause):
		}
	}
}

// ends are the two of a connection.
type ends struct{ local, remote netip.AddrPort }

// connectionsOf are those that are restored into this network namespace.
func connectionsOf(m *Manifest) map[ends]bool {
	wanted := make(map[ends]bool)
	for _, p := range m.Processes {
		if slices.Contains(p.OwnNamespaces, "net") {
			continue
		}
		for _, s := range p.Sockets {
			local, err := netip.ParseAddrPort(s.Local)
			if err != nil || !strings.HasPrefix(s.Protocol, "tcp") {
				continue
			}
			if remote, err := netip.ParseAddrPort(s.Remote); err == nil {
				wanted[ends{local, remote}] = true
			}
		}
	}
	return wanted
}

func (c *conflicts) tellConnections(list []proc.Connection) {
	for i, x := range list {
		if i == listed {
			c.foresee("and %d more connections of the tree are in use", len(list)-listed)
			return
		}
		what := fmt.Sprintf("the connection of %s with %s", x.Local, x.Remote)
		if x.Inode == 0 {
			c.foresee("%s is still being closed by the kernel, since its peer has not answered: wait until it is gone (ss -tan), or restore with --tcp-close", what)
			continue
		}
		owner, known := proc.SocketOwners(map[uint64]bool{x.Inode: true})[x.Inode]
		switch {
		case !known:
			c.foresee("%s, which the restored tree needs, belongs to another program: end it, or restore with --tcp-close", what)
		case !c.holders[owner.PID]: // else it has to end for its pid already
			c.foresee("process %d (%s) has %s, which the restored tree needs: end it, or restore with --tcp-close", owner.PID, owner.Comm, what)
		}
	}
}
