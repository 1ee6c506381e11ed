//go:build linux && (amd64 || arm64)

package shim

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
)

// processName is the shim's argv[0], and how init knows it.
const processName = "stasis-shim"

// listenerFD is the socket that the daemon has bound.
const listenerFD = 3

// maxRequest bounds a request in bytes: an environment can be large.
const maxRequest = 8 << 20

// init turns this process into a shim if that is what it was started for.
func init() {
	if len(os.Args) != 3 || os.Args[0] != processName || !isListener(listenerFD) {
		return
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "stasis-shim:", err)
		os.Exit(1) //nolint:forbidigo // this is the main of a shim
	}
	os.Exit(0) //nolint:forbidigo // as above
}

func isListener(fd int) bool {
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && listens == 1
}

// shim is the state of this process.
type shim struct {
	dir   string
	hub   hub
	quit  chan struct{}
	leave func() // closes quit, once

	op sync.Mutex // held while a run is begun

	// children is held while this process has children that are not the job's: CRIU and its guard, whose ends others wait for.
	children sync.Mutex

	mu      sync.Mutex
	changed *sync.Cond // broadcast when status changes
	status  Status
	term    time.Time     // of the last SIGTERM to this process; zero: none
	pumped  chan struct{} // closed when the console of the run is read to its end
}

// serve works until it is told to quit. keep is how many bytes of the job's output are kept.
func serve(dir, keep string) error {
	kept, err := strconv.ParseInt(keep, 10, 64)
	if err != nil {
		return fmt.Errorf("how much is kept of the job's output: %w", err)
	}
	// Nothing that the daemon has left open may get into the job, and with it into its checkpoints.
	if err := unix.CloseRange(listenerFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close what was inherited: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the heir of orphans: %w", err)
	}
	unix.Umask(0o022) // the job's: a daemon's is stricter. What this process makes itself has modes of its own.
	// Not signal.Ignore, which the job would inherit.
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGTTOU, syscall.SIGTTIN)
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)

	listener, err := net.FileListener(os.NewFile(listenerFD, socketName))
	if err != nil {
		return err
	}
	log, err := openLog(dir, max(kept/(olderLogs+1), smallestLog))
	if err != nil {
		return err
	}
	s := &shim{
		dir: dir, quit: make(chan struct{}),
		hub:    hub{log: log, viewers: make(map[*viewer]struct{})},
		status: Status{Protocol: protocolVersion, Shim: os.Getpid(), At: BootID()},
	}
	s.changed = sync.NewCond(&s.mu)
	s.leave = sync.OnceFunc(func() { close(s.quit) })
	if err := s.save(); err != nil {
		return err
	}
	go s.reapAll()
	go s.noteTerm(terminated)
	go s.accept(listener)
	<-s.quit
	s.hub.close()
	return os.Remove(filepath.Join(dir, socketName))
}

func (s *shim) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "stasis-shim: accept:", err)
			return
		}
		go s.talk(conn)
	}
}

// talk answers one request.
func (s *shim) talk(conn net.Conn) {
	defer conn.Close()
	if !fromRoot(conn) {
		return
	}
	in := bufio.NewReaderSize(conn, 4096)
	line, err := readLine(in)
	if err != nil {
		return
	}
	var req request
	if err := json.Unmarshal(line, &req); err != nil {
		_ = reply(conn, response{Error: fmt.Sprintf("bad request: %v", err)})
		return
	}
	if req.Op == opAttach {
		if reply(conn, s.now()) == nil {
			s.hub.attach(buffered{conn, in}, req.Rows, req.Cols)
		}
		return
	}
	answer := s.answer(conn, &req)
	_ = reply(conn, answer)
	if req.Op == opQuit && answer.Error == "" { // without it a job that runs would lose its terminal, and with it its life
		s.leave()
	}
}

// fromRoot says whether the other side is this user. The folder is closed to others anyway.
func fromRoot(conn net.Conn) bool {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	_ = raw.Control(func(fd uintptr) {
		peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (peer.Uid == 0 || int(peer.Uid) == os.Geteuid())
	})
	return ok
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, more, err := in.ReadLine()
		if err != nil {
			return nil, err
		}
		if line = append(line, part...); !more {
			return line, nil
		}
		if len(line) > maxRequest {
			return nil, errors.New("too long")
		}
	}
}

// buffered is a connection of which some has been read ahead.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

func reply(conn net.Conn, r response) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(text, '\n'))
	return err
}

func (s *shim) now() response {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
	return response{Status: &status}
}

func (s *shim) answer(conn net.Conn, req *request) response {
	var (
		restored *Restored
		err      error
	)
	switch {
	case req.Op == opStatus:
	case req.Op == opStart && req.Start != nil:
		err = s.start(req.Start)
	case req.Op == opRestore && req.Restore != nil:
		restored, err = s.restore(req.Restore)
	case req.Op == opSignal:
		err = s.signal(syscall.Signal(req.Signal), req.Tree)
	case req.Op == opWait:
		s.wait(conn, req.Run)
	case req.Op == opQuit:
		err = s.mayQuit()
	default:
		err = fmt.Errorf("request %q is unknown to this shim, which is of Stasis %s", req.Op, stasis.Version)
	}
	r := s.now()
	r.Restored, r.Status.Busy = restored, s.busy(req.Op)
	if err != nil {
		r.Error, r.Damaged = err.Error(), errors.Is(err, stasis.ErrDamaged)
	}
	return r
}

// busy says whether a run is being begun, for a daemon that has not asked for it itself.
func (s *shim) busy(op string) bool {
	if op != opStatus {
		return false
	}
	if s.op.TryLock() {
		s.op.Unlock()
		return false
	}
	return true
}

// wait returns when a run has ended, or nobody waits any more.
func (s *shim) wait(conn net.Conn, run int) {
	gone := false
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // the caller says no more
		s.mu.Lock()
		defer s.mu.Unlock()
		gone = true
		s.changed.Broadcast()
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !gone && s.status.Run == run && s.status.Running {
		s.changed.Wait()
	}
}

func (s *shim) mayQuit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Running {
		return fmt.Errorf("the job runs: end process %d first", s.status.PID)
	}
	return nil
}

// save writes the status for when this process is gone. With s.mu held, or before anybody else knows s.
func (s *shim) save() error {
	text, err := json.Marshal(s.status)
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, stateName)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("write the shim's state: %w", err)
	}
	return os.Rename(path+".new", path)
}

// update changes the status and tells whoever waits for that.
func (s *shim) update(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
	if err := s.save(); err != nil {
		fmt.Fprintln(os.Stderr, "stasis-shim:", err)
	}
	s.changed.Broadcast()
}
