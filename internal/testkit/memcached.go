package testkit

import (
	"fmt"
	"maps"
	"net"
	"strings"

	"stasis/internal/require"
)

// memcached is a memcached server with a client that knows all its keys.
type memcached struct {
	pid    int
	addr   string
	kept   kept
	values map[string]string
	round  int
}

// StartMemcached starts a memcached server with four threads.
func StartMemcached(t T) Program {
	t.Helper()
	addr := address()
	m := &memcached{addr: net.JoinHostPort(addr, "11211"), values: map[string]string{}}
	m.pid = start(t, command{path: require.Program(t, "memcached"), dir: folder(t), args: []string{
		"-l", addr, "-p", "11211", "-U", "0", "-u", "root", "-m", "64", "-t", "4",
	}})
	m.kept = kept{pid: m.pid, addr: m.addr}
	m.kept.client(t)
	return m
}

// PID implements [Program].
func (m *memcached) PID() int { return m.pid }

// Work implements [Program].
func (m *memcached) Work(t T) {
	t.Helper()
	m.round++
	c := m.kept.client(t)
	for i := range 200 {
		key := fmt.Sprintf("key-%d", mixed(uint32(m.round*1000+i))%1000)
		m.values[key] = strings.Repeat(fmt.Sprintf("%08x", mixed(uint32(m.round*1000+i))), 100)
		c.send(t, fmt.Sprintf("set %s 0 0 %d\r\n%s\r\n", key, len(m.values[key]), m.values[key]))
		c.expectLine(t, "set", "STORED")
	}
}

// Prove implements [Program].
func (m *memcached) Prove(t T) {
	t.Helper()
	fresh := dial(t, m.pid, m.addr)
	defer fresh.conn.Close()
	for _, c := range []*client{m.kept.client(t), fresh} {
		for key, value := range m.values {
			c.send(t, "get "+key+"\r\n")
			c.expectLine(t, "get", fmt.Sprintf("VALUE %s 0 %d", key, len(value)))
			c.expectLine(t, "get", value)
			c.expectLine(t, "get", "END")
		}
	}
}

// Snapshot implements [Program].
func (m *memcached) Snapshot() func() {
	values, round := maps.Clone(m.values), m.round
	return func() {
		m.values, m.round = maps.Clone(values), round
		m.kept.ended()
	}
}

var _ Program = (*memcached)(nil)
