package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// Descriptors of the CRIU process, in the order of exec.Cmd.ExtraFiles.
const (
	socketFD = 3 + iota
	tableFD
	libraryFD
	firstFreeFD
)

// Notification is a point of a dump or restore at which CRIU waits for Stasis.
type Notification string

// The notifications that the engine acts on, in the order of their coming.
const (
	PreDump        Notification = "pre-dump"        // nothing is frozen yet
	Frozen         Notification = "query-ext-files" // frozen, nothing dumped yet
	PostDump       Notification = "post-dump"       // frozen, state written
	StatusReady    Notification = "status-ready"    // a lazy dump serves its pages
	PreRestore     Notification = "pre-restore"
	PostRestore    Notification = "post-restore" // carries the pid
	PreResume      Notification = "pre-resume"   // the last moment before the threads run
	PostResume     Notification = "post-resume"
	NetworkLocked  Notification = "network-lock"
	NetworkFreed   Notification = "network-unlock"
	NamespacesMade Notification = "setup-namespaces"
)

// Handler is called at each notification; pid is the root of a restored tree
// as the host sees it, else 0. An error makes CRIU stop and undo what it did.
type Handler func(ctx context.Context, at Notification, pid int) error

// Request is one dump or restore.
type Request struct {
	Opts    *rpc.CriuOpts
	WorkDir string     // images and log; the caller makes and removes it
	LogName string     // name of the log in WorkDir
	Blind   *Blind     // hides memory in a dump; nil to hide nothing
	Arm     *Arm       // runs calls in restored threads before they are let go; nil to run none
	Raw     []string   // lines of CRIU's configuration in Opts that nobody has checked; for messages
	Files   []*os.File // inherited by CRIU; named by [FD] in the options
	Stdin   io.Reader  // nil: /dev/null
	Stdout  io.Writer
	Stderr  io.Writer

	// Sibling makes CRIU, and with it the root of a restored tree, a child of
	// this process' parent.
	Sibling bool
}

// FD is the number that the i-th of Request.Files has in the CRIU process.
func FD(i int) int { return firstFreeFD + i }

// ErrAbandoned says that CRIU was killed on purpose, to keep the tree as it is.
var ErrAbandoned = errors.New("CRIU was abandoned")

// Session is one running "criu swrk".
type Session struct {
	cmd    *exec.Cmd
	socket *os.File
	req    Request
	pidfd  int // of a CRIU that is no child of ours

	kernelTemporary string // file that CRIU may leave; "" if none

	mu        sync.Mutex
	abandoned bool // guarded by mu
	ended     bool // guarded by mu; CRIU has been waited for
}

// Start starts CRIU. The caller calls exactly one of Dump and Restore, then
// Close.
func (b *Binary) Start(req Request) (*Session, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket for CRIU: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "criu"), os.NewFile(uintptr(fds[1]), "swrk")
	defer theirs.Close()

	s := &Session{socket: ours, req: req}
	s.cmd = exec.Command(b.Path, "swrk", strconv.Itoa(socketFD))
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = req.Stdin, req.Stdout, req.Stderr
	s.cmd.ExtraFiles = []*os.File{theirs, nil, nil}
	s.cmd.Env = os.Environ()
	if req.Blind != nil {
		s.cmd.ExtraFiles[tableFD-3], s.cmd.ExtraFiles[libraryFD-3] = req.Blind.table, req.Blind.library
		s.cmd.Env = append(s.cmd.Env, req.Blind.environment()...)
	}
	if req.Arm != nil {
		s.cmd.ExtraFiles[tableFD-3], s.cmd.ExtraFiles[libraryFD-3] = req.Arm.file, req.Arm.library
		s.cmd.Env = append(s.cmd.Env, req.Arm.environment()...)
	}
	library, err := s.keepKernel(b)
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer library.Close()
	s.cmd.ExtraFiles = append(s.cmd.ExtraFiles, req.Files...)
	// Signals from the terminal go to Stasis alone, which then decides.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: !req.Opts.GetShellJob()}
	if req.Sibling {
		s.cmd.SysProcAttr.Cloneflags = unix.CLONE_PARENT
		s.pidfd = -1
		s.cmd.SysProcAttr.PidFD = &s.pidfd
	}
	if err := s.cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start %s: %w", b.Path, err)
	}
	return s, nil
}

// keepKernel lets CRIU keep what it finds out about the kernel. The library for
// it is preloaded if nobody has done that yet; the caller closes it after the
// start. It is nil where there is none.
func (s *Session) keepKernel(b *Binary) (library *os.File, err error) {
	if !b.Dynamic {
		return nil, nil
	}
	file := b.kernelFile()
	if file == "" {
		return nil, nil
	}
	if s.req.Blind == nil && s.req.Arm == nil {
		if library, err = memfile("stasis-preload.so", preloadLibrary); err != nil {
			return nil, err
		}
		s.cmd.ExtraFiles[libraryFD-3] = library
		s.cmd.Env = append(s.cmd.Env, preload())
	}
	s.kernelTemporary = fmt.Sprintf("%s.%d", file, temporaries.Add(1)<<32|int64(os.Getpid()))
	s.cmd.Env = append(s.cmd.Env, kernelEnvironment(file, s.kernelTemporary)...)
	return library, nil
}

// temporaries counts the sessions of this process.
var temporaries atomic.Int64

// PID is the process id of CRIU.
func (s *Session) PID() int { return s.cmd.Process.Pid }

// Dump makes a dump and returns when CRIU is done.
func (s *Session) Dump(ctx context.Context, h Handler) error {
	_, err := s.run(ctx, rpc.CriuReqType_DUMP, h)
	return err
}

// Restore restores a tree and returns the process id of its root.
func (s *Session) Restore(ctx context.Context, h Handler) (int, error) {
	resp, err := s.run(ctx, rpc.CriuReqType_RESTORE, h)
	if err != nil {
		return 0, err
	}
	return int(resp.GetRestore().GetPid()), nil
}

// Abandon kills CRIU at once. The processes it holds are let go by the kernel;
// network locks and helper files that it made stay. It is how a tree is ended
// or kept stopped without CRIU undoing what a later restore needs.
func (s *Session) Abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abandoned = true
	if !s.ended {
		s.cmd.Process.Kill()
	}
}

// Keep gives the connection with CRIU to somebody who keeps a copy of it. CRIU takes a controller that is gone for one that has nothing more to
// say, and goes on; with the copy it waits, also when this process is killed. Only
// Close ends that.
func (s *Session) Keep(hold func(fd int) error) error { return hold(int(s.socket.Fd())) }

// Close ends the session. CRIU, if it still works on something, finds its
// controller gone, undoes it and ends.
func (s *Session) Close() error {
	_ = unix.Shutdown(int(s.socket.Fd()), unix.SHUT_RDWR) // whoever has a copy
	s.socket.Close()
	err := s.wait()
	if s.kernelTemporary != "" {
		_ = os.Remove(s.kernelTemporary) // CRIU has renamed it, if it got that far
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.abandoned {
		return nil
	}
	return err
}

// wait waits for the end of CRIU. Its exit code is known only to its parent.
func (s *Session) wait() error {
	if !s.req.Sibling {
		return s.cmd.Wait()
	}
	defer unix.Close(s.pidfd)
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(s.pidfd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// run sends the request and serves the notifications until the reply.
func (s *Session) run(ctx context.Context, kind rpc.CriuReqType, h Handler) (*rpc.CriuResp, error) {
	work, err := os.Open(s.req.WorkDir)
	if err != nil {
		return nil, fmt.Errorf("open CRIU's work folder: %w", err)
	}
	defer work.Close()
	opts := s.req.Opts
	dir := int32(work.Fd()) // a number in this process' table, CRIU looks it up there
	yes := true
	opts.ImagesDirFd, opts.WorkDirFd = &dir, &dir
	opts.LogFile, opts.NotifyScripts = &s.req.LogName, &yes

	if err := s.send(&rpc.CriuReq{Type: &kind, Opts: opts}); err != nil {
		return nil, s.explain(err)
	}
	var refused error
	for {
		resp, err := s.receive()
		if refused != nil && (err != nil || resp.GetType() != rpc.CriuReqType_NOTIFY) {
			return nil, refused // what CRIU says about it is only its consequence
		}
		if err != nil {
			return nil, s.explain(err)
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			if !resp.GetSuccess() || resp.GetType() != kind {
				return nil, s.explain(replyError(resp))
			}
			return resp, nil
		}
		notify := resp.GetNotify()
		if refused == nil {
			refused = h(ctx, Notification(notify.GetScript()), int(notify.GetPid()))
		}
		if refused == nil {
			refused = ctx.Err()
		}
		if s.wasAbandoned() {
			return nil, errors.Join(refused, ErrAbandoned)
		}
		ok := refused == nil
		kind := rpc.CriuReqType_NOTIFY
		if err := s.send(&rpc.CriuReq{Type: &kind, NotifySuccess: &ok}); err != nil {
			return nil, errors.Join(refused, s.explain(err))
		}
	}
}

func (s *Session) wasAbandoned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.abandoned
}

func (s *Session) send(req *rpc.CriuReq) error {
	raw, err := req.MarshalVT()
	if err != nil {
		return fmt.Errorf("encode the request to CRIU: %w", err)
	}
	if _, err := s.socket.Write(raw); err != nil {
		return fmt.Errorf("CRIU is gone: %w", err)
	}
	return nil
}

// receive reads one message. CRIU passes a descriptor with some; nobody here
// wants it.
func (s *Session) receive() (*rpc.CriuResp, error) {
	raw, oob := make([]byte, 64<<10), make([]byte, 64)
	n, oobn, _, _, err := recvmsg(int(s.socket.Fd()), raw, oob)
	if err != nil {
		return nil, fmt.Errorf("read from CRIU: %w", err)
	}
	closePassed(oob[:oobn])
	if n == 0 {
		return nil, errors.New("CRIU ended without an answer")
	}
	resp := &rpc.CriuResp{}
	if err := resp.UnmarshalVT(raw[:n]); err != nil {
		return nil, fmt.Errorf("decode CRIU's answer: %w", err)
	}
	return resp, nil
}

func recvmsg(fd int, p, oob []byte) (n, oobn, flags int, from unix.Sockaddr, err error) {
	for {
		n, oobn, flags, from, err = unix.Recvmsg(fd, p, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return n, oobn, flags, from, err
		}
	}
}

func closePassed(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// ErrRequest is CRIU's word for options that it does not take.
const ErrRequest = syscall.EBADRQC

var errNoReason = errors.New("CRIU gave no reason")

func replyError(resp *rpc.CriuResp) error {
	errno, message := syscall.Errno(resp.GetCrErrno()), withoutNoise(resp.GetCrErrmsg())
	switch {
	case message != "":
		return fmt.Errorf("CRIU: %s", message)
	case errno != 0:
		return fmt.Errorf("CRIU: %w", errno)
	default:
		return errNoReason
	}
}
