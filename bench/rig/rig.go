// Package rig is what the benchmark and the demonstration have in common: they
// end processes that were restored, and run stock CRIU as its users do.
//
// Words: stock CRIU is the program by itself, run through its command line with
// nothing of Stasis in it. To adopt is to become the parent of what is orphaned
// below: a restored tree is let go by whoever restored it, and its pid is free
// for the next restore only when its new parent has waited for it.
//
// Everything may be called from several goroutines at once.
package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// Adopt makes this process the parent of orphans below it.
func Adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	return nil
}

// endLimit bounds the wait for a killed process: giving back 4 GiB takes a
// kernel half a second.
const endLimit = 30 * time.Second

// End kills a child of this process, born or adopted, and returns when its pid
// is free. One that is gone already is no error; a process of somebody else who
// has its pid by now is left alone.
func End(pid int) error {
	task, err := proc.ReadTask(pid)
	if errors.Is(err, proc.ErrGone) || err == nil && task.PPID != os.Getpid() {
		return nil
	} else if err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return WaitGone(pid)
}

// WaitGone returns when a child that has been killed is gone and its pid is
// free.
func WaitGone(pid int) error {
	for deadline := time.Now().Add(endLimit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); errors.Is(err, unix.ECHILD) {
			return nil
		}
	}
	return fmt.Errorf("process %d is still there %v after it was killed", pid, endLimit)
}

// Sync writes everything of the file system that holds dir to its disk.
func Sync(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := unix.Syncfs(int(folder.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", dir, err)
	}
	return nil
}

// Wait calls done every millisecond until it says true or fails, or the
// context ends.
func Wait(ctx context.Context, what string, done func() (bool, error)) error {
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// WarmCache reads a folder, so that it is in the page cache.
func WarmCache(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := readOnce(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func readOnce(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{file}, make([]byte, 1<<20))
	return err
}
