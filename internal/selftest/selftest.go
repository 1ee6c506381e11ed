// Package selftest really dumps and restores a small process of its own, to show that this machine can.
//
// [Run] may be called from several goroutines at once.
package selftest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/engine"
	"stasis/internal/health"
)

// patience is how long the process may take to answer.
const patience = 10 * time.Second

// Run dumps a small process with the engine, ends it by that, restores it, and asks it whether its memory is what it was. It leaves
// nothing behind.
func Run(ctx context.Context, e *engine.Engine) []health.Result {
	dir, err := os.MkdirTemp("", "stasis-selftest-")
	if err != nil {
		return []health.Result{failed("self-test", err)}
	}
	defer func() { _ = os.RemoveAll(dir) }() // the system sweeps what stays
	t := &test{engine: e, dir: dir}
	defer t.end()
	var results []health.Result
	for _, step := range []struct {
		name string
		work func(context.Context) (string, error)
	}{{"self-test: start", t.start}, {"self-test: dump", t.dump}, {"self-test: restore", t.restore}, {"self-test: memory", t.prove}} {
		detail, err := step.work(ctx)
		if err != nil {
			return append(results, failed(step.name, err))
		}
		results = append(results, health.Result{Name: step.name, Status: health.OK, Detail: detail})
	}
	return results
}

func failed(name string, err error) health.Result {
	return health.Result{Name: name, Status: health.Fail, Detail: err.Error(), Remedy: "see what else fails here; \"stasis check\" names what is missing"}
}

type test struct {
	engine *engine.Engine
	dir    string
	pid    int // of the process; 0: it has been reaped
	answer string
}

func (t *test) start(ctx context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("start a process: %w", err)
	}
	defer null.Close()
	cmd := &exec.Cmd{
		Path: self, Args: []string{processName, t.dir}, Dir: "/", Stdin: null, Stdout: null, Stderr: null,
		Env: []string{"GOMAXPROCS=1"}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start a process: %w", err)
	}
	t.pid = cmd.Process.Pid
	if t.answer, err = t.ask(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("process %d with %d MiB of memory", t.pid, memory>>20), nil
}

func (t *test) dump(ctx context.Context) (string, error) {
	result, err := t.engine.Dump(ctx, stasis.DumpOptions{PID: t.pid, Dir: filepath.Join(t.dir, "checkpoint"), After: stasis.AfterKill})
	if err != nil {
		return "", err //nolint:wrapcheck // it says all there is to say
	}
	if err := t.reap(ctx); err != nil {
		return "", err
	}
	f := result.Manifest.Figures
	return fmt.Sprintf("it stood still for %v; %d KiB stored", time.Duration(f.PauseUS)*time.Microsecond, f.BytesStored>>10), nil
}

func (t *test) restore(ctx context.Context) (string, error) {
	if err := os.Remove(filepath.Join(t.dir, answerName)); err != nil {
		return "", fmt.Errorf("prepare the restore: %w", err)
	}
	result, err := t.engine.Restore(ctx, stasis.RestoreOptions{Dir: filepath.Join(t.dir, "checkpoint")})
	if err != nil {
		return "", err //nolint:wrapcheck // it says all there is to say
	}
	t.pid = result.PID
	return fmt.Sprintf("it ran again after %v", result.ToResume.Round(time.Millisecond)), nil
}

func (t *test) prove(ctx context.Context) (string, error) {
	answer, err := t.ask(ctx)
	if err != nil {
		return "", err
	}
	if answer != t.answer {
		return "", fmt.Errorf("its memory is not what it was: %s and not %s", answer, t.answer)
	}
	return "it is what it was", nil
}

// ask asks the process for the checksum of its memory.
func (t *test) ask(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var asked time.Time
	for {
		if text, err := os.ReadFile(filepath.Join(t.dir, answerName)); err == nil {
			return string(text), nil
		}
		// Before it listens a signal would end it, so it says when it does.
		if _, err := os.Stat(filepath.Join(t.dir, readyName)); err == nil && time.Since(asked) > time.Second {
			if err := unix.Kill(t.pid, unix.SIGUSR1); err != nil {
				return "", fmt.Errorf("the process is gone: %w", err)
			}
			asked = time.Now()
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the process does not answer: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// reap waits for the end of the process, which is a child of this one.
func (t *test) reap(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		pid, err := unix.Wait4(t.pid, nil, unix.WNOHANG, nil)
		switch {
		case pid == t.pid, errors.Is(err, unix.ECHILD):
			t.pid = 0
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for the process: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the process does not end: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (t *test) end() {
	if t.pid == 0 {
		return
	}
	_ = unix.Kill(t.pid, unix.SIGKILL) // gone already, perhaps
	_ = t.reap(context.Background())   // nothing else can be done
}
