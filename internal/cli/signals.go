package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ending are the signals that end a command before its time. It undoes what it did first.
var ending = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}

// passedOn are those that are further passed on to a restored tree.
var passedOn = []os.Signal{unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}

// signals decides what the signals of this process mean: at first they end the command, later they go to the restored tree.
type signals struct {
	incoming chan os.Signal
	done     chan struct{}

	mu      sync.Mutex
	forward func(syscall.Signal) // guarded by mu; nil: a signal ends the command
}

// listen begins to handle signals. The first that ends the command cancels with an *interruption; the next one ends the program
// as it always does, should the first not be enough.
func listen(cancel context.CancelCauseFunc) *signals {
	s := &signals{incoming: make(chan os.Signal, 16), done: make(chan struct{})}
	for _, sig := range ending {
		if !signal.Ignored(sig) { // nohup
			signal.Notify(s.incoming, sig)
		}
	}
	// A reader that goes away is an error of a write, on every descriptor, and no reason to leave a dump half done.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	go s.handle(cancel)
	return s
}

func (s *signals) handle(cancel context.CancelCauseFunc) {
	for {
		select {
		case <-s.done:
			return
		case sig := <-s.incoming:
			number, ok := sig.(syscall.Signal)
			if !ok {
				continue
			}
			s.mu.Lock()
			forward := s.forward
			s.mu.Unlock()
			if forward != nil {
				forward(number)
				continue
			}
			signal.Reset(ending...)
			cancel(&interruption{number})
		}
	}
}

// forwardTo passes signals on from now on.
func (s *signals) forwardTo(forward func(syscall.Signal)) {
	s.mu.Lock()
	s.forward = forward
	s.mu.Unlock()
	signal.Notify(s.incoming, passedOn...)
}

func (s *signals) stop() {
	signal.Stop(s.incoming)
	close(s.done)
}

// passOn sends a signal to the root of a restored tree. What the terminal sends to all processes in its foreground has reached
// a tree there already.
func passOn(pid int, sig syscall.Signal) {
	switch sig {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGWINCH:
		if inForeground(pid) {
			return
		}
	}
	_ = unix.Kill(pid, sig) // a root that has ended is about to be waited for
}

// inForeground says whether a process is in the foreground of this process' terminal, and so has it for itself.
func inForeground(pid int) bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	front, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return false
	}
	group, err := unix.Getpgid(pid)
	return err == nil && group == front
}

// waitFor waits for a child and gives its exit code, 128 and the signal's number for one that was killed.
func waitFor(pid int) (int, error) {
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for the restored process %d: %w", pid, err)
		}
		if status.Signaled() {
			return exitSignal + int(status.Signal()), nil
		}
		return status.ExitStatus(), nil
	}
}
