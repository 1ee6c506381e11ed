//go:build linux && (amd64 || arm64)

package jobs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
	"stasis/internal/proc"
)

// process stands for the shim of a job that runs under somebody else's hand: a process that was taken up, or one whose shim is gone.
// It has no console, and its end is seen, but not how it ended.
type process struct {
	pid   int
	start uint64
}

var _ Shim = (*process)(nil)

// takeProcess finds a process that is known by its pid and start time.
func takeProcess(pid int, start uint64) (*process, shim.Status, bool) {
	if pid <= 0 {
		return nil, shim.Status{}, false
	}
	p := &process{pid: pid, start: start}
	now := p.status()
	return p, now, now.Running
}

func (p *process) alive() bool {
	task, err := proc.ReadTask(p.pid)
	return err == nil && task.StartTime == p.start && !task.Zombie()
}

func (p *process) status() shim.Status {
	s := shim.Status{Run: 1, Running: p.alive(), PID: p.pid, Start: p.start}
	if !s.Running {
		s.Exit = &db.Exit{Code: -1, Lost: true, At: time.Now().UTC()}
	}
	return s
}

// Status implements Shim.
func (p *process) Status(context.Context) (shim.Status, error) { return p.status(), nil }

var errOutside = errors.New("the process does not run under a shim")

// Start implements Shim.
func (p *process) Start(context.Context, shim.Command) (shim.Status, error) {
	return shim.Status{}, errOutside
}

// Restore implements Shim.
func (p *process) Restore(context.Context, shim.Restore) (shim.Status, shim.Restored, error) {
	return shim.Status{}, shim.Restored{}, errOutside
}

// Signal implements Shim.
func (p *process) Signal(_ context.Context, sig syscall.Signal, tree bool) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil || !p.alive() {
		return fmt.Errorf("process %d has ended", p.pid)
	}
	defer unix.Close(fd)
	if tree {
		if tasks, err := proc.Tree(p.pid); err == nil {
			for _, task := range tasks[1:] {
				_ = unix.Kill(task.PID, sig)
			}
		}
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), p.pid, err)
	}
	return nil
}

// lookEvery bounds how late the end of a wait is noticed.
const lookEvery = 250 * time.Millisecond

// Wait implements Shim.
func (p *process) Wait(ctx context.Context, _ int) (shim.Status, error) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil || !p.alive() {
		return p.status(), nil
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(lookEvery.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return shim.Status{}, fmt.Errorf("wait for process %d: %w", p.pid, err)
		}
		if n > 0 {
			break
		}
	}
	return p.status(), ctx.Err()
}

// Quit implements Shim.
func (p *process) Quit(context.Context) error { return nil }
