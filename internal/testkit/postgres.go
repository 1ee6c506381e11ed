package testkit

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
)

// postgres is a PostgreSQL server with open sessions, each of which is a process
// of its own with a temporary table and a prepared statement in its memory.
type postgres struct {
	pid      int
	sessions []*session
	connect  []string // arguments of psql
	rows     int
	sum      int
}

const postgresSessions = 3

// StartPostgres starts a PostgreSQL server on a new database. It runs as a user
// of its own, where CRIU can dump one; else as root, behind a library that tells
// it otherwise.
func StartPostgres(t T) Program {
	t.Helper()
	server := require.Program(t, "/usr/lib/postgresql/*/bin/postgres")
	dir, addr := folder(t), address()
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatalf("postgres: %v", err)
	}
	as := asNobody(t, data)
	as.run(t, dir, filepath.Join(filepath.Dir(server), "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")

	p := &postgres{connect: []string{"-X", "-q", "-A", "-t", "-h", addr, "-p", "5432", "-U", "postgres", "-d", "postgres"}}
	settings := []string{
		"-D", data, "-k", dir, "-h", addr, "-p", "5432",
		"-c", "fsync=off", "-c", "shared_buffers=32MB", "-c", "max_connections=20",
		// Its log must not grow between a dump and a restore.
		"-c", "log_min_messages=panic", "-c", "log_checkpoints=off",
		// The test's address is not the one that the default allows.
		"-c", "hba_file=" + filepath.Join(dir, "hba"),
	}
	if err := os.WriteFile(filepath.Join(dir, "hba"), []byte("host all all 127.0.0.0/8 trust\n"), 0o644); err != nil {
		t.Fatalf("postgres: %v", err)
	}
	c := as.command(server, settings...)
	c.dir = dir
	// It has a small System V segment, which CRIU takes only out of an IPC namespace of its own.
	c.unshare = unix.CLONE_NEWIPC
	p.pid = start(t, c)
	p.waitReady(t)
	p.open(t)
	Watch(p.pid)
	removeShared(t, p.pid)
	return p
}

// removeShared removes, when the test ends, the files in /dev/shm that the
// server's processes have mapped: it does so itself, but not when it is killed.
// Some it makes later, so this looks again at the end.
func removeShared(t T, root int) {
	t.Helper()
	files := map[string]bool{}
	look := func() {
		for _, pid := range Tree(root) {
			maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
			for line := range strings.Lines(string(maps)) {
				if _, name, found := strings.Cut(strings.TrimSpace(line), "/dev/shm/PostgreSQL."); found {
					files["/dev/shm/PostgreSQL."+name] = true
				}
			}
		}
	}
	look()
	t.Cleanup(func() {
		look()
		for file := range files {
			_ = os.Remove(file)
		}
	})
}

// nobody is how to run a program that refuses to be root's.
type nobody struct {
	wrapper []string
	env     []string
}

const nobodyID = 65534

func asNobody(t T, data string) nobody {
	t.Helper()
	if err := os.Chown(data, nobodyID, nobodyID); err != nil {
		t.Fatalf("postgres: %v", err)
	}
	if require.HasCapability("CAP_SYS_RESOURCE") {
		setpriv := require.Program(t, "setpriv")
		return nobody{wrapper: []string{setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"}}
	}
	library := filepath.Join(serverFiles(t), "fakeuid.so")
	return nobody{env: []string{"LD_PRELOAD=" + library, fmt.Sprint("STASIS_FAKE_UID=", nobodyID)}}
}

func (n nobody) command(path string, args ...string) command {
	whole := append(append(append([]string(nil), n.wrapper...), path), args...)
	return command{path: whole[0], args: whole[1:], env: n.env}
}

func (n nobody) run(t T, dir, path string, args ...string) {
	t.Helper()
	c := n.command(path, args...)
	cmd := exec.CommandContext(t.Context(), c.path, c.args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), c.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", path, err, out)
	}
}

func (p *postgres) waitReady(t T) {
	t.Helper()
	psql := require.Program(t, "psql")
	until(t, "postgres is ready", func() error {
		if err := alive(p.pid); err != nil {
			t.Fatalf("postgres: %v", err)
		}
		out, err := exec.CommandContext(t.Context(), psql, append(p.connect, "-c", "select 1")...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// session is one psql, which stays connected through dump and restore.
type session struct {
	in      io.WriteCloser
	out     *bufio.Scanner
	rows    int // of its temporary table
	backend string
}

func (p *postgres) open(t T) {
	t.Helper()
	for range postgresSessions {
		cmd := exec.Command(require.Program(t, "psql"), p.connect...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatalf("psql: %v", err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatalf("psql: %v", err)
		}
		cmd.Stderr = cmd.Stdout
		if err := cmd.Start(); err != nil {
			t.Fatalf("psql: %v", err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		s := &session{in: in, out: bufio.NewScanner(out)}
		s.ask(t, "create temporary table mine (n integer); prepare twice as select $1::integer * 2; select 1;")
		s.backend = s.ask(t, "select pg_backend_pid();")
		p.sessions = append(p.sessions, s)
	}
	p.sessions[0].ask(t, "create table shared (n integer primary key, payload text); select 1;")
}

// ask sends commands of which the last one gives one line.
func (s *session) ask(t T, sql string) string {
	t.Helper()
	if _, err := io.WriteString(s.in, sql+"\n"); err != nil {
		t.Fatalf("psql: %v", err)
	}
	// psql that waits for a dead server would wait for ever.
	timer := time.AfterFunc(replyWithin, func() { s.in.Close() })
	defer timer.Stop()
	if !s.out.Scan() {
		t.Fatalf("psql: no answer to %q: %v", sql, s.out.Err())
	}
	return s.out.Text()
}

func (s *session) expect(t T, sql, want string) {
	t.Helper()
	if got := s.ask(t, sql); got != want {
		t.Errorf("postgres: %q answers %q, should be %q", sql, got, want)
	}
}

// PID implements [Program].
func (p *postgres) PID() int { return p.pid }

// Work implements [Program].
func (p *postgres) Work(t T) {
	t.Helper()
	for i, s := range p.sessions {
		from, to := p.rows, p.rows+100
		s.expect(t, fmt.Sprintf("insert into shared select n, repeat(md5(n::text), 10) from generate_series(%d, %d) n; select 'done';", from, to-1), "done")
		s.expect(t, fmt.Sprintf("insert into mine select generate_series(1, %d); select 'done';", i+1), "done")
		for n := from; n < to; n++ {
			p.sum += n
		}
		p.rows, s.rows = to, s.rows+i+1
	}
}

// Prove implements [Program].
func (p *postgres) Prove(t T) {
	t.Helper()
	whole := "select count(*), sum(n), count(*) filter (where payload = repeat(md5(n::text), 10)) from shared;"
	want := fmt.Sprintf("%d|%d|%d", p.rows, p.sum, p.rows)
	if p.rows == 0 {
		want = "0||0"
	}
	for _, s := range p.sessions {
		s.expect(t, whole, want)
		s.expect(t, "select count(*) from mine;", fmt.Sprint(s.rows))
		s.expect(t, "execute twice(21);", "42")
		s.expect(t, "select pg_backend_pid();", s.backend)
	}
	out, err := exec.CommandContext(t.Context(), require.Program(t, "psql"), append(p.connect, "-c", whole)...).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		t.Errorf("postgres: a new session sees %q, %v, should be %q", got, err, want)
	}
}

// Snapshot implements [Program]. The tables are on disk and don't go back, so
// there is nothing to go back to.
func (p *postgres) Snapshot() func() { return func() {} }

var _ Program = (*postgres)(nil)
