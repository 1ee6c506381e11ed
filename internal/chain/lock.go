package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/store"
)

// ErrBusy says that somebody else works with a checkpoint: it is being dumped on, restored, removed or written.
var ErrBusy = errors.New("in use")

// Lock holds folders of checkpoints. It belongs to one goroutine.
type Lock struct {
	files []*os.File
	dirs  []string // of files, absolute
}

// LockShared holds the checkpoint in dir and all ancestors that hold blocks of it, so that nothing of them is removed or given up
// meanwhile; any number may hold them so. A restore takes it before it opens the checkpoint and lets go when all memory is in place,
// a dump on top takes it before it opens the parent and lets go after its checkpoint exists. It waits for an operation under way, until
// ctx ends. An ancestor that is missing is left out. Roots are as for [Open].
//
// On file systems that can't lock folders it does nothing, as a dump's own lock.
func LockShared(ctx context.Context, dir string, roots ...string) (*Lock, error) {
	l := &Lock{}
	if err := l.shareAll(ctx, dir, roots); err != nil {
		return nil, errors.Join(err, l.Unlock())
	}
	return l, nil
}

func (l *Lock) shareAll(ctx context.Context, dir string, roots []string) error {
	if err := l.share(ctx, absolute(dir)); err != nil {
		return err
	}
	folder, err := store.OpenFolder(dir) // not before it is locked: it could be removed meanwhile
	if err != nil {
		return err
	}
	m, err := image.ReadManifest(folder)
	if err != nil {
		return err
	}
	resolve := Resolver(m, dir, roots...)
	for _, o := range m.Origins {
		id, err := image.ParseID(o.ID)
		if err != nil {
			return err
		}
		src, err := resolve(id)
		if err != nil {
			continue // said when it is needed
		}
		if err := l.share(ctx, src.Name()); err != nil {
			return err
		}
	}
	return nil
}

// share locks one folder more. A folder that was put in its place while it waited is locked instead.
func (l *Lock) share(ctx context.Context, dir string) error {
	for {
		f, err := openDir(dir)
		if err != nil {
			return err
		}
		if err := flockWait(ctx, f); err != nil {
			return errors.Join(fmt.Errorf("cannot use the checkpoint %s while it is being changed: %w", dir, err), f.Close())
		}
		if isAt(f, dir) {
			l.files, l.dirs = append(l.files, f), append(l.dirs, dir)
			return nil
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
}

// LockExclusive holds folders so that nobody else uses them. Where somebody does, it is ErrBusy at once.
func LockExclusive(dirs ...string) (*Lock, error) {
	l := &Lock{}
	for _, dir := range dirs {
		if err := l.exclude(absolute(dir)); err != nil {
			return nil, errors.Join(err, l.Unlock())
		}
	}
	return l, nil
}

// exclude locks one folder more, if nobody uses it.
func (l *Lock) exclude(dir string) error {
	if slices.Contains(l.dirs, dir) {
		return nil
	}
	f, err := openDir(dir)
	if err != nil {
		return err
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil || !isAt(f, dir) {
		if err == nil {
			err = ErrBusy
		}
		return errors.Join(fmt.Errorf("the checkpoint %s is %w: a dump or restore works with it: wait for that to end", dir, err), f.Close())
	}
	l.files, l.dirs = append(l.files, f), append(l.dirs, dir)
	return nil
}

// tryExclude is exclude, but a folder that somebody uses, or that is gone, is left out.
func (l *Lock) tryExclude(dir string) error {
	if err := l.exclude(dir); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, store.ErrNoCheckpoint) {
		return err
	}
	return nil
}

// has says whether it holds a folder.
func (l *Lock) has(dir string) bool { return l != nil && slices.Contains(l.dirs, dir) }

// Unlock lets all go. It may be called more than once, and on a nil Lock.
func (l *Lock) Unlock() error {
	if l == nil {
		return nil
	}
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	l.files, l.dirs = nil, nil
	return errors.Join(errs...)
}

func openDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s: there is no such folder: check the path", store.ErrNoCheckpoint, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot lock the checkpoint: %w", err)
	}
	return f, nil
}

// isAt says whether the path leads to the folder that was opened.
func isAt(f *os.File, dir string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	at, err := os.Stat(dir)
	return err == nil && os.SameFile(open, at)
}

// flock locks a folder. Where the file system can't, nothing is locked and nothing is wrong.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrBusy
		}
		for _, cannot := range []error{unix.EBADF, unix.ENOLCK, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL} {
			if errors.Is(err, cannot) {
				return nil
			}
		}
		return err
	}
}

// flockWait takes a shared lock, and waits for it as long as ctx lasts. It asks again and again instead of waiting in the kernel: a wait
// there can't be called off, and would take the lock for a moment after its caller has gone.
func flockWait(ctx context.Context, f *os.File) error {
	const longest = 5 * time.Millisecond
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, longest) {
		if err := flock(f, unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, ErrBusy) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func realPath(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}
