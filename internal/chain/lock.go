package chain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/store"
)

// ErrBusy says that somebody else works with a checkpoint: it is being dumped on, restored, removed or written.
var ErrBusy = errors.New("in use")

// Lock holds folders of checkpoints. It belongs to one goroutine.
type Lock struct {
	files []folderFD
	dirs  []string // of files, absolute

	// Of LockShared, read while they were held:

	top      *store.Folder
	manifest *image.Manifest // of top
	found    map[[16]byte]*store.Folder
	lost     []*MissingError
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
	if _, err := l.share(ctx, absolute(dir), func() bool { return true }); err != nil {
		return err
	}
	var err error
	if l.top, err = store.OpenFolder(dir); err != nil { // not before it is locked: it could be removed meanwhile
		return err
	}
	if l.manifest, err = image.ReadManifest(l.top); err != nil {
		return err
	}
	l.found = make(map[[16]byte]*store.Folder, len(l.manifest.Origins))
	f := newFinder(l.manifest, dir, roots)
	for _, o := range l.manifest.Origins {
		id, err := image.ParseID(o.ID)
		if err != nil {
			return err
		}
		if err := l.shareAncestor(ctx, f, id); err != nil {
			return err
		}
	}
	return nil
}

// shareAncestor looks for an ancestor and locks its folder. What is there is looked at once it is locked: before, others could change
// it.
func (l *Lock) shareAncestor(ctx context.Context, f *finder, id [16]byte) error {
	folder, err := f.findWith(id, func(path string) (folder *store.Folder, why string, err error) {
		isIt := func() bool {
			folder, why = withID(path, id)
			return folder != nil
		}
		held, err := l.share(ctx, path, isIt)
		var cannot *openError
		switch {
		case errors.Is(err, store.ErrNoCheckpoint):
			return nil, "no checkpoint there", nil
		case errors.As(err, &cannot):
			return nil, cannot.err.Error(), nil
		case err != nil || !held:
			return nil, why, err
		}
		if !isIt() {
			err = l.letGoLast()
		}
		return folder, why, err
	})
	var lost *MissingError
	if errors.As(err, &lost) {
		l.lost = append(l.lost, lost) // said when it is needed
		return nil
	}
	if err == nil {
		l.found[id] = folder
	}
	return err
}

// share locks one folder more. A folder that was put in its place while it waited is locked instead. It does not wait for a folder
// of which wanted says that it is the wrong one, and returns false.
func (l *Lock) share(ctx context.Context, dir string, wanted func() bool) (held bool, err error) {
	for {
		f, err := openDir(dir)
		if err != nil {
			return false, err
		}
		err = flock(f, unix.LOCK_SH|unix.LOCK_NB)
		if errors.Is(err, ErrBusy) {
			if !wanted() {
				return false, f.Close()
			}
			err = flockWait(ctx, f)
		}
		if err != nil {
			return false, errors.Join(fmt.Errorf("cannot use the checkpoint %s while it is being changed: %w", dir, err), f.Close())
		}
		if f.isAt(dir) {
			l.files, l.dirs = append(l.files, f), append(l.dirs, dir)
			return true, nil
		}
		if err := f.Close(); err != nil {
			return false, err
		}
	}
}

// letGoLast gives back the folder that was locked last.
func (l *Lock) letGoLast() error {
	last := len(l.files) - 1
	f := l.files[last]
	l.files, l.dirs = l.files[:last], l.dirs[:last]
	return f.Close()
}

// Open opens the checkpoint that LockShared holds, with the ancestors that it found, none of which is looked for again. Otherwise it is
// as the function [Open].
func (l *Lock) Open() (*reader.Checkpoint, error) {
	if err := checkDeduped(l.top.Name()); err != nil {
		return nil, err
	}
	return reader.OpenWith(l.top, l.manifest, l.resolve)
}

// OpenEarly is Open for whoever wants CRIU's images before memory: see [image.OpenEarly].
func (l *Lock) OpenEarly() (*reader.Checkpoint, error) {
	if err := checkDeduped(l.top.Name()); err != nil {
		return nil, err
	}
	return reader.OpenEarly(l.top, l.manifest, l.resolve)
}

func (l *Lock) resolve(id [16]byte) (store.Source, error) {
	if folder := l.found[id]; folder != nil {
		return folder, nil
	}
	for _, lost := range l.lost {
		if lost.ID == hexID(id) {
			return nil, lost
		}
	}
	return nil, fmt.Errorf("%s does not list %x among its ancestors", l.top.Name(), id) // image refuses such an index
}

// Source is the folder that LockShared holds.
func (l *Lock) Source() *store.Folder { return l.top }

// Missing lists the ancestors that LockShared did not find.
func (l *Lock) Missing() []*MissingError { return l.lost }

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
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil || !f.isAt(dir) {
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

// folderFD is the descriptor of a folder.
type folderFD int

// Close closes it. It must not be used again.
func (f folderFD) Close() error { return unix.Close(int(f)) }

func openDir(dir string) (folderFD, error) {
	for {
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOENT):
			return -1, fmt.Errorf("%w in %s: there is no such folder: check the path", store.ErrNoCheckpoint, dir)
		case err != nil:
			return -1, &openError{&fs.PathError{Op: "open", Path: dir, Err: err}}
		}
		return folderFD(fd), nil
	}
}

// openError says that a folder that is there can't be opened.
type openError struct{ err error }

func (e *openError) Error() string { return "cannot lock the checkpoint: " + e.err.Error() }
func (e *openError) Unwrap() error { return e.err }

// isAt says whether the path leads to the folder that was opened.
func (f folderFD) isAt(dir string) bool {
	var open, at unix.Stat_t
	return unix.Fstat(int(f), &open) == nil && unix.Stat(dir, &at) == nil && open.Dev == at.Dev && open.Ino == at.Ino
}

// flock locks a folder. Where the file system can't, nothing is locked and nothing is wrong.
func flock(f folderFD, how int) error {
	for {
		err := unix.Flock(int(f), how)
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
func flockWait(ctx context.Context, f folderFD) error {
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
