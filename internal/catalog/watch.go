package catalog

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watcher asks the kernel to tell of changes in folders (inotify(7)). An event is in its queue before the system call that made the change
// returns, so that whoever reads the queue first is never behind anybody who has been told of a change. That is why this is no goroutine, as
// the libraries for it have one.
//
// It is no more than a reason not to look: where folders cannot be watched, they are looked at. What the kernel does not tell of, such as
// a file system that is mounted over a folder, is found within a second.
type watcher struct {
	fd    int // -1: none
	paths map[int]string
	wds   map[string]int

	checkpoints map[string]bool // which of them are of checkpoints, and not needed to know the list

	notBefore time.Time // it has failed, and is tried again then

	root     [2]uint64 // device and inode of the catalog's folder
	looked   time.Time // when everything was looked at last
	complete bool      // everything that was looked at is watched since before that
}

const (
	// watchMask is what may make a checkpoint of a folder, or change one: manifests are renamed into place, but people may copy them.
	watchMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW
	// mostFolders, and mostCheckpoints, bound what is watched; a watch costs the kernel about a kilobyte.
	mostFolders     = 4096
	mostCheckpoints = 1024
	// lookAgain is how long the kernel is believed that nothing has changed.
	lookAgain = time.Second
	// tryAgain is how long folders are not watched after that has failed.
	tryAgain = time.Minute
)

// local are the file systems that nobody but this machine's kernel writes to, by statfs(2).
var local = []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC, zfsMagic, bcachefsMagic}

const (
	zfsMagic      = 0x2fc12fc1
	bcachefsMagic = 0xca451a4e
)

// quietLocked says whether nothing can have changed since the last look.
func (c *Catalog) quietLocked() bool {
	w := &c.watch
	switch {
	case !w.complete:
		return false
	case w.root != rootOf(c.dir): // another folder is there now, or none
		w.close()
		return false
	case time.Since(w.looked) > lookAgain:
		c.generation++ // also what nobody tells of must come to light
		return false
	}
	quiet := true
	lost := w.drain(func(path string) {
		switch {
		case c.folders[path] != nil:
			c.folders[path].changed = time.Time{}
		case c.entries[path] != nil:
			c.generation++
			c.takeLocked(path)
			return
		case c.folders[filepath.Dir(path)] != nil: // it may become a checkpoint
			c.folders[filepath.Dir(path)].changed = time.Time{}
		}
		quiet = false
	})
	if lost {
		w.close()
		c.generation++
		for _, known := range c.folders {
			known.changed = time.Time{}
		}
	}
	return quiet && !lost
}

// Watch has the kernel tell of changes of checkpoints from now on, and says whether it does: as they are found from now on (Fresh) they stay until
// Look gives another generation.
func (c *Catalog) Watch(list []*Entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &c.watch
	if !w.complete || len(list) > mostCheckpoints {
		return false
	}
	if len(w.checkpoints)+len(list) > mostCheckpoints {
		w.dropCheckpoints()
		c.generation++
	}
	for _, e := range list {
		if _, known := w.wds[e.Dir]; known {
			continue
		}
		if !w.add(e.Dir) {
			return false
		}
		w.checkpoints[e.Dir] = true
	}
	return true
}

func rootOf(dir string) [2]uint64 {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return [2]uint64{}
	}
	return [2]uint64{st.Dev, st.Ino}
}

// begin comes before everything is looked at.
func (w *watcher) begin(dir string) {
	w.looked, w.root = time.Now(), rootOf(dir)
	if w.fd >= 0 {
		w.complete = true
		return
	}
	if w.looked.Before(w.notBefore) {
		return
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil { // such as fs.inotify.max_user_instances
		w.notBefore = w.looked.Add(tryAgain)
		return
	}
	w.complete = true
	w.fd, w.paths, w.wds, w.checkpoints = fd, make(map[int]string), make(map[string]int), make(map[string]bool)
}

// folder watches a folder that is about to be looked at, and says whether it has just begun to.
func (w *watcher) folder(path string) (begun bool) {
	if !w.complete {
		return false
	}
	if _, known := w.wds[path]; known {
		delete(w.checkpoints, path)
		return false
	}
	w.complete = len(w.wds)-len(w.checkpoints) < mostFolders && w.add(path)
	return w.complete
}

// done comes when everything has been looked at. What is watched in part is of no use.
func (w *watcher) done() {
	if w.complete || w.fd < 0 {
		return
	}
	w.close()
	if w.root != [2]uint64{} { // a catalog without a folder will have one
		w.notBefore = w.looked.Add(tryAgain)
	}
}

func (w *watcher) close() {
	if w.fd >= 0 {
		_ = unix.Close(w.fd)
	}
	*w = watcher{fd: -1, looked: w.looked, root: w.root, notBefore: w.notBefore}
}

// Close gives back what the catalog has of the kernel. It can be asked as before, but has to look each time.
func (c *Catalog) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watch.close()
	c.watch.notBefore = time.Unix(1<<40, 0)
}

// add watches a folder. One that is gone needs no watch: its parent's tells when it is back.
func (w *watcher) add(path string) bool {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); errors.Is(err, unix.ENOENT) && len(w.wds) > 0 {
		return true
	} else if err != nil || !slices.Contains(local, int64(fs.Type)) { //nolint:unconvert // 32 bits elsewhere
		return false
	}
	wd, err := unix.InotifyAddWatch(w.fd, path, watchMask)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return true
	case err != nil: // such as fs.inotify.max_user_watches
		return false
	}
	if before, known := w.paths[wd]; known { // it was renamed
		w.forget(wd, before)
	}
	w.paths[wd], w.wds[path] = path, wd
	return true
}

func (w *watcher) forget(wd int, path string) {
	delete(w.paths, wd)
	delete(w.wds, path)
	delete(w.checkpoints, path)
}

func (w *watcher) dropCheckpoints() {
	for path := range w.checkpoints {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(w.wds[path])) //nolint:gosec // a small number
		w.forget(w.wds[path], path)
	}
}

// drain reads what has happened since, and calls changed with each folder to which it has. It is true where some of it was lost.
func (w *watcher) drain(changed func(path string)) (lost bool) {
	buffer := make([]byte, 4096)
	seen := make(map[string]bool)
	for {
		n, err := unix.Read(w.fd, buffer)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return lost
		case err != nil || n <= 0:
			return true
		}
		for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			wd := int(int32(binary.NativeEndian.Uint32(rest))) //nolint:gosec // as the kernel means it
			mask, name := binary.NativeEndian.Uint32(rest[4:]), binary.NativeEndian.Uint32(rest[12:])
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+int(name)):]
			if mask&unix.IN_Q_OVERFLOW != 0 {
				lost = true
			}
			path, known := w.paths[wd]
			if !known {
				continue
			}
			if mask&(unix.IN_IGNORED|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0 {
				w.forget(wd, path)
				_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) //nolint:gosec // a small number
			}
			if !seen[path] {
				seen[path] = true
				changed(path)
			}
		}
	}
}
