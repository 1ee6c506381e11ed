package testkit

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"stasis/internal/require"
)

// nginx is an nginx server: a master that forked workers, whose counters are in
// memory that they share. Its client knows how many requests there were.
type nginx struct {
	pid      int
	addr     string
	kept     kept
	page     string
	requests int
	accepted int
}

const nginxSettings = `
daemon off;
user root;
worker_processes 2;
pid PID_FILE;
error_log /dev/null;
events { worker_connections 64; }
http {
	access_log off;
	keepalive_timeout 1h;
	keepalive_requests 100000;
	open_file_cache max=16;
	server {
		listen ADDRESS;
		location / { root FOLDER; }
		location = /status { stub_status; }
	}
}
`

// StartNginx starts an nginx server with two workers.
func StartNginx(t T) Program {
	t.Helper()
	path, dir := require.Program(t, "nginx"), folder(t)
	n := &nginx{addr: net.JoinHostPort(address(), "80"), page: strings.Repeat("a page of some length\n", 5000)}
	settings := strings.NewReplacer("ADDRESS", n.addr, "FOLDER", dir, "PID_FILE", filepath.Join(dir, "pid")).Replace(nginxSettings)
	for name, text := range map[string]string{"nginx.conf": settings, "page": n.page} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatalf("nginx: %v", err)
		}
	}
	n.pid = start(t, command{path: path, dir: dir, args: []string{"-p", dir, "-e", "/dev/null", "-c", filepath.Join(dir, "nginx.conf")}})
	n.kept = kept{pid: n.pid, addr: n.addr}
	n.Prove(t) // after its first answer, all its workers are there
	Watch(n.pid)
	return n
}

// keptClient counts what nginx counts.
func (n *nginx) keptClient(t T) *client {
	t.Helper()
	if n.kept.now == nil {
		n.accepted++
	}
	return n.kept.client(t)
}

// get fetches a path and leaves the connection open.
func (n *nginx) get(t T, c *client, path string) string {
	t.Helper()
	n.requests++
	c.send(t, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path))
	reply, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatalf("nginx: GET %s: %v", path, err)
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err != nil || reply.StatusCode != http.StatusOK {
		t.Errorf("nginx: GET %s: %s, %v", path, reply.Status, err)
	}
	return string(body)
}

// PID implements [Program].
func (n *nginx) PID() int { return n.pid }

// Work implements [Program].
func (n *nginx) Work(t T) {
	t.Helper()
	for range 50 {
		n.get(t, n.keptClient(t), "/page")
	}
}

// Prove implements [Program].
func (n *nginx) Prove(t T) {
	t.Helper()
	old := n.keptClient(t)
	n.accepted++
	fresh := dial(t, n.pid, n.addr)
	defer fresh.conn.Close()
	for _, c := range []*client{old, fresh} {
		if body := n.get(t, c, "/page"); body != n.page {
			t.Errorf("nginx: the page has %d bytes and is another, should have %d", len(body), len(n.page))
		}
	}
	// Only now that both were answered, both are counted.
	for _, c := range []*client{old, fresh} {
		n.proveCounters(t, n.get(t, c, "/status"))
	}
}

func (n *nginx) proveCounters(t T, status string) {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(status))
	for lines.Scan() {
		var accepts, handled, requests int
		if got, _ := fmt.Sscan(lines.Text(), &accepts, &handled, &requests); got == 3 {
			if accepts != n.accepted || handled != n.accepted || requests != n.requests {
				t.Errorf("nginx: counts %d connections and %d requests, there were %d and %d", accepts, requests, n.accepted, n.requests)
			}
			return
		}
	}
	t.Errorf("nginx: no counters in %q", status)
}

// Snapshot implements [Program].
func (n *nginx) Snapshot() func() {
	requests, accepted := n.requests, n.accepted
	return func() {
		n.requests, n.accepted = requests, accepted
		n.kept.ended()
	}
}

var _ Program = (*nginx)(nil)
