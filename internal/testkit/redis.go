package testkit

import (
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"stasis/internal/require"
)

// Redis is a Redis server with a client that knows all its keys.
type Redis struct {
	Addr string // host:port

	pid    int
	kept   kept
	values map[string]string
	visits int
	list   []string
	round  int
}

const redisValue = 2048 // bytes

// StartRedis starts a Redis server with mib MiB of values. It saves nothing to
// disk.
func StartRedis(t T, mib int) *Redis {
	t.Helper()
	path := require.Program(t, "redis-server")
	addr, dir := address(), folder(t)
	r := &Redis{Addr: net.JoinHostPort(addr, "6379"), values: map[string]string{}}
	r.pid = start(t, command{path: path, dir: dir, args: []string{
		"--bind", addr, "--port", "6379", "--dir", dir, "--save", "", "--appendonly", "no", "--protected-mode", "no",
		// It opens the log for each line, so that a log that grows stands in nobody's way.
		"--logfile", filepath.Join(dir, "log"),
	}})
	r.kept = kept{pid: r.pid, addr: r.Addr}
	for range max(1, mib) {
		r.fill(t, 1<<20/redisValue)
	}
	Watch(r.pid)
	return r
}

// fill sets n new keys with one batch of commands.
func (r *Redis) fill(t T, n int) {
	t.Helper()
	r.round++
	var batch strings.Builder
	for i := range n {
		key := fmt.Sprintf("key-%d-%d", r.round, i)
		r.values[key] = strings.Repeat(fmt.Sprintf("%08x", mixed(uint32(r.round*100000+i))), redisValue/8)
		batch.WriteString(resp("SET", key, r.values[key]))
	}
	c := r.kept.client(t)
	c.send(t, batch.String())
	for range n {
		c.expectLine(t, "SET", "+OK")
	}
}

// resp encodes a command (redis.io, "Redis serialization protocol").
func resp(words ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b.String()
}

func (c *client) expectLine(t T, what, want string) {
	t.Helper()
	if got := c.line(t); got != want {
		t.Errorf("%v: %s answers %.200q, should be %.200q", c.conn.RemoteAddr(), what, got, want)
	}
}

// expectBulk wants one string as Redis sends it.
func (c *client) expectBulk(t T, what, want string) {
	t.Helper()
	c.expectLine(t, what, fmt.Sprintf("$%d", len(want)))
	c.expectLine(t, what, want)
}

// PID implements [Program].
func (r *Redis) PID() int { return r.pid }

// Work implements [Program].
func (r *Redis) Work(t T) {
	t.Helper()
	r.fill(t, 50)
	c := r.kept.client(t)
	for range 20 {
		r.visits++
		r.list = append(r.list, fmt.Sprint("item ", r.visits))
		c.send(t, resp("INCR", "visits")+resp("RPUSH", "list", r.list[len(r.list)-1]))
		c.expectLine(t, "INCR", fmt.Sprintf(":%d", r.visits))
		c.expectLine(t, "RPUSH", fmt.Sprintf(":%d", len(r.list)))
	}
}

// Prove implements [Program].
func (r *Redis) Prove(t T) {
	t.Helper()
	fresh := dial(t, r.pid, r.Addr)
	defer fresh.conn.Close()
	for _, c := range []*client{r.kept.client(t), fresh} {
		for some := range slices.Chunk(slices.Sorted(maps.Keys(r.values)), 500) {
			var batch strings.Builder
			for _, key := range some {
				batch.WriteString(resp("GET", key))
			}
			c.send(t, batch.String())
			for _, key := range some {
				c.expectBulk(t, "GET "+key, r.values[key])
			}
		}
		keys := len(r.values)
		if r.visits > 0 {
			c.send(t, resp("GET", "visits"))
			c.expectBulk(t, "GET visits", strconv.Itoa(r.visits))
			c.send(t, resp("LRANGE", "list", "0", "-1"))
			c.expectLine(t, "LRANGE", fmt.Sprintf("*%d", len(r.list)))
			for _, item := range r.list {
				c.expectBulk(t, "LRANGE", item)
			}
			keys += 2
		}
		c.send(t, resp("DBSIZE"))
		c.expectLine(t, "DBSIZE", fmt.Sprintf(":%d", keys))
	}
}

// Snapshot implements [Program].
func (r *Redis) Snapshot() func() {
	values, visits, list, round := maps.Clone(r.values), r.visits, append([]string(nil), r.list...), r.round
	return func() {
		r.values, r.visits, r.list, r.round = maps.Clone(values), visits, append([]string(nil), list...), round
		r.kept.ended()
	}
}

var _ Program = (*Redis)(nil)
