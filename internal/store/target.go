package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// partial ends the names of files that are being written, where the file system has no unnamed files.
const partial = ".partial"

// FolderTarget writes a checkpoint into a folder: the shards, and a manifest.json that is linked last.
//
// Files are unnamed (O_TMPFILE, Linux 3.11) until Commit links them, so that a Stasis that gets killed leaves nothing behind.
// File systems without unnamed files (NFS, some FUSE) get names that end in .partial, which the next CreateFolder removes.
//
// The folder is locked (flock) as long as the target is open. On file systems that can't lock a folder, nothing keeps two
// dumps from the same folder but the names of their shards: the second Commit fails.
type FolderTarget struct {
	path string   // absolute
	dir  *os.File // the folder; everything goes by it, so that a folder put in its place is not written to
	made bool     // by CreateFolder

	named, buffered bool // for tests: do as on a file system without unnamed files, without direct I/O

	files atomic.Int32 // how many Create made

	mu      sync.Mutex
	writers []*fileWriter // guarded by mu
	linked  []string      // guarded by mu: names that Commit gave to files so far
	closed  bool          // guarded by mu
}

var _ Target = (*FolderTarget)(nil)

// CreateFolder starts a checkpoint in the folder path, which is made with mode 0700 where it is missing; its parent must
// exist. It refuses a folder that holds a manifest (ErrExists) or that another process is writing into (ErrBusy), and removes
// what an interrupted write left. Other files in the folder are left alone.
func CreateFolder(path string) (*FolderTarget, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find the folder %s: %w", path, err)
	}
	t := &FolderTarget{path: abs}
	switch err := os.Mkdir(abs, 0o700); {
	case err == nil:
		t.made = true
	case !errors.Is(err, fs.ErrExist):
		return nil, explain("cannot make the folder", abs, err)
	}
	if t.dir, err = openDir(abs); err != nil {
		t.removeFolder()
		return nil, explain("cannot open the folder", abs, err)
	}
	if err := t.claim(); err != nil {
		t.removeFolder()
		t.dir.Close()
		return nil, err
	}
	return t, nil
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_DIRECTORY|unix.O_RDONLY, 0)
}

// claim locks the folder, then sees that it holds no checkpoint and no remains of one.
func (t *FolderTarget) claim() error {
	switch err := unix.Flock(int(t.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
	case errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("cannot write a checkpoint to %s: %w: wait for it to end, or choose another folder", t.path, ErrBusy)
	case isAny(err, unix.EBADF, unix.ENOLCK, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL):
		// Network file systems: see the type's comment.
	default:
		return explain("cannot lock the folder", t.path, err)
	}
	entries, err := os.ReadDir(t.path)
	if err != nil {
		return explain("cannot read the folder", t.path, err)
	}
	for _, e := range entries {
		if e.Name() == ManifestName {
			return fmt.Errorf("cannot write a checkpoint to %s: one %w there: choose another folder, or remove that checkpoint first",
				t.path, ErrExists)
		}
		if e.Name() == RemovedName {
			return fmt.Errorf("cannot write a checkpoint to %s: one that was removed %w there, because others build on it: choose another folder",
				t.path, ErrExists)
		}
	}
	for _, e := range entries {
		if err := t.removeRemains(e); err != nil {
			return err
		}
	}
	return nil
}

var shardName = regexp.MustCompile(`^img-[0-9]{1,5}$`)

// removeRemains removes a file that an interrupted write left: a partial file of ours, or a shard that was linked by a Commit
// that never came to the manifest. Both are told by how they begin. A file that merely has such a name is an error, because
// Commit could not take the name.
func (t *FolderTarget) removeRemains(e fs.DirEntry) error {
	name := e.Name()
	base, isPartial := strings.CutSuffix(name, partial)
	if !shardName.MatchString(base) && (!isPartial || base != ManifestName) {
		return nil
	}
	path := filepath.Join(t.path, name)
	head := make([]byte, len(Magic))
	if e.Type().IsRegular() {
		f, err := os.Open(path)
		if err != nil {
			return explain("cannot look at", path, err)
		}
		n, _ := f.Read(head)
		f.Close()
		// A partial file can have been left before anything was written to it, and a partial manifest is JSON.
		if string(head[:n]) == Magic || isPartial && (n == 0 || base == ManifestName) {
			if err := unix.Unlinkat(int(t.dir.Fd()), name, 0); err != nil {
				return explain("cannot remove the remains of an interrupted dump:", path, err)
			}
			return nil
		}
	}
	return fmt.Errorf("cannot write a checkpoint to %s: %s %w and is not from Stasis: move it away or choose another folder",
		t.path, name, ErrExists)
}

// Create starts a shard. Writing is in the background: see fileWriter.
func (t *FolderTarget) Create(name string) (Writer, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("cannot create %s in %s: the checkpoint was committed or aborted already", name, t.path)
	}
	for _, w := range t.writers {
		if w.name == name {
			return nil, fmt.Errorf("cannot create %s in %s: it %w", name, t.path, ErrExists)
		}
	}
	w, err := newFileWriter(t, name)
	if err != nil {
		return nil, err
	}
	t.writers = append(t.writers, w)
	t.files.Add(1)
	return w, nil
}

// bufferSize shares the memory for buffers among the files there are so far.
func (t *FolderTarget) bufferSize() int {
	share := allBuffers / 2 / max(int(t.files.Load()), 1) &^ (align - 1)
	return max(minBuffer, min(share, maxBuffer))
}

// Commit links the shards, makes that durable, then links the manifest, which is the atomic step.
func (t *FolderTarget) Commit(manifest []byte) error {
	if err := checkManifest(manifest); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("cannot commit %s: the checkpoint was committed or aborted already", t.path)
	}
	for _, w := range t.writers {
		if !w.finished {
			return fmt.Errorf("cannot commit %s: %s was not finished", t.path, w.name)
		}
	}
	if err := t.stillThere(); err != nil {
		return err
	}
	m, err := newFileWriter(t, ManifestName)
	if err != nil {
		return err
	}
	if err := t.publish(m, manifest); err != nil {
		return errors.Join(err, m.Abort())
	}
	t.closed = true
	for _, w := range append(t.writers, m) {
		w.close()
	}
	return t.dir.Close()
}

func (t *FolderTarget) publish(m *fileWriter, manifest []byte) error {
	if _, err := m.Write(manifest); err != nil {
		return err
	}
	if err := m.Finish(); err != nil {
		return err
	}
	for _, w := range t.writers {
		if err := t.link(w); err != nil {
			return err
		}
	}
	// The names of the folder and of the shards must reach the disk before the manifest's does.
	if err := t.dir.Sync(); err != nil {
		return explain("cannot sync the folder", t.path, err)
	}
	if err := t.syncParent(); err != nil {
		return err
	}
	if err := t.link(m); err != nil {
		return err
	}
	if err := t.dir.Sync(); err != nil {
		return explain("cannot sync the folder", t.path, err)
	}
	return nil
}

// syncParent makes the folder's own name durable, where CreateFolder gave it.
func (t *FolderTarget) syncParent() error {
	if !t.made {
		return nil
	}
	parent, err := openDir(filepath.Dir(t.path))
	if err != nil {
		// One may make folders where one may not read; the whole file system can be synced all the same.
		if err := unix.Syncfs(int(t.dir.Fd())); err != nil {
			return explain("cannot sync the file system of", t.path, err)
		}
		return nil
	}
	defer parent.Close()
	if err := parent.Sync(); err != nil {
		return explain("cannot sync the folder", filepath.Dir(t.path), err)
	}
	return nil
}

func (t *FolderTarget) link(w *fileWriter) error {
	if err := w.link(); err != nil {
		return err
	}
	t.linked = append(t.linked, w.name)
	return nil
}

// stillThere sees that the path leads to the folder that was opened: a checkpoint in a folder that was removed or moved away
// would be lost to whoever asked for it.
func (t *FolderTarget) stillThere() error {
	if same, err := t.samePath(); err != nil || !same {
		return fmt.Errorf("cannot publish the checkpoint: the folder %s was removed or replaced while it was written: leave it in place and dump again",
			t.path)
	}
	return nil
}

func (t *FolderTarget) samePath() (bool, error) {
	at, err := os.Stat(t.path)
	if err != nil {
		return false, err
	}
	open, err := t.dir.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(at, open), nil
}

// Abort removes all files, and the folder where CreateFolder made it and nothing else is in it.
func (t *FolderTarget) Abort() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	var errs []error
	// The manifest is the last of the names and goes first: at no time there is one without its shards.
	for i := len(t.linked) - 1; i >= 0; i-- {
		err := unix.Unlinkat(int(t.dir.Fd()), t.linked[i], 0)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, explain("cannot remove", filepath.Join(t.path, t.linked[i]), err))
		}
	}
	for _, w := range t.writers {
		errs = append(errs, w.Abort())
	}
	t.removeFolder()
	return errors.Join(append(errs, t.dir.Close())...)
}

// removeFolder removes the folder where CreateFolder made it and it is empty; a folder with something in it is someone's.
func (t *FolderTarget) removeFolder() {
	if !t.made {
		return
	}
	if t.dir != nil {
		if same, err := t.samePath(); err != nil || !same {
			return
		}
	}
	_ = unix.Rmdir(t.path) // ENOTEMPTY: someone put something there, it stays
}
