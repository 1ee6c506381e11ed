//go:build linux && (amd64 || arm64)

// Package guard watches over a restore from a second process, so that a
// half-restored tree never runs, whatever becomes of Stasis.
//
// If Stasis is killed in the middle of a restore, the kernel closes its
// userfaultfds and hands out zero pages for memory that has not come yet, and
// CRIU takes a controller that is gone for "done" and lets the tree run. The
// guard is a small process that holds copies of those descriptors, and of the
// connection with CRIU, and knows which processes are being restored. When its socket to Stasis ends without a
// word, it kills them and their descendants, waits for their end, and only then
// lets go of the descriptors.
//
// The guard is this executable once more: /proc/self/exe with the name
// stasis-guard, which this package's init notices before main runs. So whatever
// program links Stasis as a library brings it along. It has a session of its
// own and ignores the signals that a terminal sends.
//
// Words: to *watch* a process means that it is killed if things go wrong; to
// *expect* one is the same before it is born; to *disarm* is the good end, to
// *fire* the bad one on purpose. Watched processes are known by pidfd: a pid that
// is used again later is nobody's business.
//
// All methods may be called from several goroutines at once. Each waits for the
// guard's answer: when Watch returns, the process is watched.
package guard

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrEnded says that the guard has been disarmed, has fired, or has died: there is no guard any more.
var ErrEnded = errors.New("the guard has ended")

// What Stasis says to the guard: one byte, for watch with a pid behind it. The
// answer is empty text but for a null byte, or an error's text.
const (
	opWatch   = 'w' // with a pidfd
	opExpect  = 'e' // device, inode and name of a file
	opHold    = 'h' // with a descriptor
	opKeep    = 'k' // with one that is not released
	opRelease = 'r'
	opDisarm  = 'd'
	opFire    = 'f'
)

// maxMessage bounds a message in bytes.
const maxMessage = 512

// Guard is a guard process, seen from Stasis.
type Guard struct {
	cmd *exec.Cmd

	mu     sync.Mutex
	socket int // -1 after the end
}

// Start starts a guard. It must be ended by Disarm or Fire.
func Start() (*Guard, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make a socket for the guard: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "guard")
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{processName},
		Env:         []string{"GOMAXPROCS=1"},
		Dir:         "/", // it keeps no file system busy
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		_ = unix.Close(pair[0])
		return nil, fmt.Errorf("cannot start the guard, which is this program once more: %w", err)
	}
	return &Guard{cmd: cmd, socket: pair[0]}, nil
}

// Watch makes a process, which must exist, one that dies with the restore, and
// its descendants with it.
func (g *Guard) Watch(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("cannot watch process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	message := fmt.Appendf([]byte{opWatch}, "%d", pid)
	if err := g.say(message, fd); err != nil {
		return fmt.Errorf("cannot watch process %d: %w", pid, err)
	}
	return nil
}

// Expect names a file that whoever is to be born has open. Should the guard fire,
// it kills the processes that have it open for writing and were born after the
// guard as if they had been watched, with their descendants.
//
// CRIU makes the root of a tree long before it tells of it, and not as its own
// child; so when Stasis and then CRIU die, nothing but its open files connects the
// root with the restore: by and by it takes over the program, the name and the
// environment that the tree had. CRIU's log is the last to go.
func (g *Guard) Expect(file string) error {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return fmt.Errorf("cannot expect processes that have %s open: %w", file, err)
	}
	if err := g.say(fmt.Appendf([]byte{opExpect}, "%d %d %s", st.Dev, st.Ino, filepath.Base(file)), -1); err != nil {
		return fmt.Errorf("cannot expect processes that have %s open: %w", file, err)
	}
	return nil
}

// Hold gives the guard a copy of a descriptor to hold until Release. fd stays the caller's.
func (g *Guard) Hold(fd int) error { return g.take(opHold, fd) }

// Keep gives the guard a copy of a descriptor to hold until its end. fd stays the caller's.
func (g *Guard) Keep(fd int) error { return g.take(opKeep, fd) }

func (g *Guard) take(op byte, fd int) error {
	if err := g.say([]byte{op}, fd); err != nil {
		return fmt.Errorf("cannot give descriptor %d to the guard: %w", fd, err)
	}
	return nil
}

// Release makes the guard close the descriptors of Hold; it goes on
// watching. For when the memory is complete and the tree does not run yet.
func (g *Guard) Release() error { return g.say([]byte{opRelease}, -1) }

// Disarm ends the guard and harms nobody.
func (g *Guard) Disarm() error { return g.end(opDisarm) }

// Fire kills all watched processes and their descendants, waits for their end,
// and ends the guard. After Disarm it does nothing but return ErrEnded.
func (g *Guard) Fire() error { return g.end(opFire) }

func (g *Guard) end(op byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.talk([]byte{op}, -1)
	if g.socket < 0 {
		return err
	}
	_ = unix.Close(g.socket)
	g.socket = -1
	if waitErr := g.cmd.Wait(); err == nil && waitErr != nil {
		err = fmt.Errorf("the guard: %w", waitErr)
	}
	return err
}

func (g *Guard) say(message []byte, fd int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.talk(message, fd)
}

// talk sends a message, with a descriptor unless fd is negative, and waits for
// the answer. With g.mu held.
func (g *Guard) talk(message []byte, fd int) error {
	if g.socket < 0 {
		return ErrEnded
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if err := retry(func() error { return unix.Sendmsg(g.socket, message, rights, nil, unix.MSG_NOSIGNAL) }); err != nil {
		return fmt.Errorf("%w: %w", ErrEnded, err)
	}
	answer := make([]byte, maxMessage)
	var n int
	err := retry(func() (err error) { n, err = unix.Read(g.socket, answer); return err })
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrEnded, err)
	case n == 0:
		return ErrEnded
	case n > 1:
		return fmt.Errorf("the guard: %s", answer[1:n])
	}
	return nil
}

// retry repeats a call that a signal interrupts.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
