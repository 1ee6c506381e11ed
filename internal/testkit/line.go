package testkit

import (
	"bufio"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"stasis/internal/require"
	"stasis/test/programs"
)

// replyWithin bounds one question to a program, whatever its protocol.
const replyWithin = 30 * time.Second

// client is one connection of questions and answers.
type client struct {
	conn net.Conn
	in   *bufio.Reader
}

// kept is a connection that stays open through a dump and a restore: then the
// restored server goes on talking over it. When a server is killed in any other
// way its connections end, and the client has to connect again.
type kept struct {
	pid  int
	addr string
	now  *client
}

func (k *kept) client(t T) *client {
	t.Helper()
	if k.now == nil {
		k.now = dial(t, k.pid, k.addr)
	}
	return k.now
}

// ended forgets the connection.
func (k *kept) ended() {
	if k.now != nil {
		k.now.conn.Close()
		k.now = nil
	}
}

// dial connects to a program that is about to start.
func dial(t T, pid int, addr string) *client {
	t.Helper()
	var conn net.Conn
	until(t, "connection to "+addr, func() (err error) {
		if err := alive(pid); err != nil {
			t.Fatalf("%v", err)
		}
		conn, err = net.DialTimeout("tcp", addr, time.Second)
		return err
	})
	c := &client{conn: conn, in: bufio.NewReader(conn)}
	t.Cleanup(func() { conn.Close() })
	return c
}

// send writes bytes, and gives all replies until the next send a deadline.
func (c *client) send(t T, text string) {
	t.Helper()
	if err := c.conn.SetDeadline(time.Now().Add(replyWithin)); err != nil {
		t.Fatalf("%v", err)
	}
	if _, err := c.conn.Write([]byte(text)); err != nil {
		t.Fatalf("question to %v: %v", c.conn.RemoteAddr(), err)
	}
}

// line reads one line without its end.
func (c *client) line(t T) string {
	t.Helper()
	text, err := c.in.ReadString('\n')
	if err != nil {
		t.Fatalf("answer of %v: %v", c.conn.RemoteAddr(), err)
	}
	return strings.TrimRight(text, "\r\n")
}

func (c *client) ask(t T, question string) string {
	t.Helper()
	c.send(t, question+"\n")
	return c.line(t)
}

// lineServer is one of the servers of test/programs/servers, with a client that
// holds the same words and strings.
type lineServer struct {
	pid     int
	addr    string
	kept    kept
	words   []uint32
	shift   uint
	strings map[string]string
	round   uint32
	// extra is asked as well and has to give "ok".
	extra string
}

// serverPort: each program has an address of its own.
const serverPort = "7000"

func startLine(t T, c command, addr string, words int, shift uint) *lineServer {
	t.Helper()
	s := &lineServer{addr: net.JoinHostPort(addr, serverPort), words: make([]uint32, words), shift: shift, strings: map[string]string{}}
	for i := range s.words {
		s.words[i] = uint32(i) * 2654435761
	}
	s.pid = start(t, c)
	s.kept = kept{pid: s.pid, addr: s.addr}
	s.kept.client(t)
	return s
}

// PID implements [Program].
func (s *lineServer) PID() int { return s.pid }

// Work implements [Program].
func (s *lineServer) Work(t T) {
	t.Helper()
	const count = 5000
	s.round++
	seed := mixed(s.round)
	s.expect(t, s.kept.client(t), fmt.Sprintf("work %d %d", seed, count), "ok")
	for k := range uint32(count) {
		s.words[(seed*1664525+k*1013904223)>>s.shift] += seed + k
	}
	for i := range 20 {
		key := fmt.Sprintf("key-%d", mixed(s.round*100+uint32(i))%200)
		s.strings[key] = fmt.Sprintf("value %d of round %d", i, s.round)
		s.expect(t, s.kept.client(t), "put "+key+" "+s.strings[key], "ok")
	}
}

// mixed gives well spread numbers that depend on n alone.
func mixed(n uint32) uint32 { return rand.New(rand.NewPCG(uint64(n), 1)).Uint32() }

func (s *lineServer) expect(t T, c *client, question, want string) {
	t.Helper()
	if got := c.ask(t, question); got != want {
		t.Errorf("%s: %q answers %.200q, should be %.200q", s.addr, question, got, want)
	}
}

// Prove implements [Program]: over the connection from before and over a new
// one.
func (s *lineServer) Prove(t T) {
	t.Helper()
	var digest uint32
	for i, w := range s.words {
		digest += w * uint32(2*i+1)
	}
	fresh := dial(t, s.pid, s.addr)
	defer fresh.conn.Close()
	for _, c := range []*client{s.kept.client(t), fresh} {
		s.expect(t, c, "digest", fmt.Sprint(digest))
		for key, value := range s.strings {
			s.expect(t, c, "get "+key, value)
		}
		s.expect(t, c, "get no-such-key", "none")
		if s.extra != "" {
			s.expect(t, c, s.extra, "ok")
		}
	}
	s.proveTicks(t, fresh)
}

// proveTicks wants the program's own timer to go on.
func (s *lineServer) proveTicks(t T, c *client) {
	t.Helper()
	ticks := func() int {
		n, err := strconv.Atoi(c.ask(t, "ticks"))
		if err != nil {
			t.Errorf("%s: ticks: %v", s.addr, err)
		}
		return n
	}
	first := ticks()
	wait(t, 10*time.Second, s.addr+" ticks", func() error {
		if now := ticks(); now <= first+1 {
			return fmt.Errorf("its timer went off %d times", now-first)
		}
		return nil
	})
}

// Snapshot implements [Program].
func (s *lineServer) Snapshot() func() {
	words, strings, round := append([]uint32(nil), s.words...), maps.Clone(s.strings), s.round
	return func() {
		s.words, s.strings, s.round = append(s.words[:0], words...), maps.Clone(strings), round
		s.kept.ended()
	}
}

var _ Program = (*lineServer)(nil)

// serverWords and serverShift are those of all servers but the database.
const (
	serverWords = 1 << 20
	serverShift = 12
)

func serverFiles(t T) string {
	t.Helper()
	return build(t, "servers", programs.Servers, "servers", "gcc -O2 -shared -fPIC -o fakeuid.so fakeuid.c")
}

// StartNode starts a server on Node.js.
func StartNode(t T) Program {
	t.Helper()
	addr := address()
	return startLine(t, command{
		path: require.Program(t, "node"), dir: folder(t),
		args: []string{filepath.Join(serverFiles(t), "server.js"), addr, serverPort},
	}, addr, serverWords, serverShift)
}

// StartPython starts a server on CPython with NumPy.
func StartPython(t T) Program {
	t.Helper()
	// Debian's own Python, which has Debian's NumPy, and not another on PATH.
	python := require.Program(t, "/usr/bin/python3")
	require.Program(t, "/usr/lib/python3/dist-packages/numpy")
	addr := address()
	return startLine(t, command{
		path: python, dir: folder(t),
		args: []string{filepath.Join(serverFiles(t), "server.py"), addr, serverPort},
	}, addr, serverWords, serverShift)
}

// StartJava starts a server on the Java virtual machine, with the collector that
// has the most threads.
func StartJava(t T) Program {
	t.Helper()
	java := require.Program(t, "java")
	require.Program(t, "javac")
	classes := build(t, "java", programs.Servers, "servers", "javac Server.java")
	addr := address()
	return startLine(t, command{
		path: java, dir: folder(t),
		args: []string{"-Xmx192m", "-XX:+UseG1GC", "-cp", classes, "Server", addr, serverPort},
	}, addr, serverWords, serverShift)
}

// StartGo starts a server in Go.
func StartGo(t T) Program {
	t.Helper()
	require.Program(t, "go")
	binary := filepath.Join(build(t, "goserver", programs.Servers, "servers/goserver", "go build -o goserver main.go"), "goserver")
	addr := address()
	return startLine(t, command{
		path: binary, dir: folder(t), args: []string{addr, serverPort},
		// Go 1.24 and newer listen with multipath TCP, which CRIU refuses: users have to set this too.
		env: []string{"GODEBUG=multipathtcp=0"},
	}, addr, serverWords, serverShift)
}

// StartSQLite starts a server on SQLite, one of whose threads inserts rows all
// the time.
func StartSQLite(t T) Program {
	t.Helper()
	addr, dir := address(), folder(t)
	s := startLine(t, command{
		path: require.Program(t, "/usr/bin/python3"), dir: dir,
		args: []string{filepath.Join(serverFiles(t), "database.py"), addr, serverPort, filepath.Join(dir, "database")},
	}, addr, 1<<12, 20)
	s.extra = "integrity"
	return s
}
