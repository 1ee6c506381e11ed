// Package catalog knows the checkpoints in a folder, whose they are, and keeps what is asked often in memory.
//
// This is where checkpoints lie in the folder D of the configuration (checkpoint.dir):
//
//	D/NAME                     a checkpoint of root's
//	D/jobs/JOB/NAME            one of a job of root's
//	D/users/UID/NAME           one that belongs to another user
//	D/users/UID/jobs/JOB/NAME  one of a job of that user
//
// All of it belongs to root and is readable by root alone. A user's checkpoint is known by its place: what the file system says of
// its files cannot be the proof, because a user must not be able to write what a restore runs as root.
//
// The catalog is never behind the folders. Where the kernel tells of changes in them (inotify(7), on local file systems), what has not changed
// costs two system calls, however much there is; elsewhere one stat(2) for each folder of folders. All methods may be called from several
// goroutines at once.
package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/store"
)

// Entry is a checkpoint, in short. Nobody changes it; a checkpoint that changes gets a new one.
type Entry struct {
	Dir      string          // its folder, an absolute path
	Owner    uint32          // user to whom it belongs, by its place
	Job      string          // the job that it is of, by its place; or ""
	Manifest *image.Manifest // without the details of its processes (only the root's pid, ppid and comm) and of its host
	Count    int             // of processes
	Bytes    int64           // that its shards take now

	stamp stamp
}

// ErrUnknown: no such checkpoint, or none that the caller may see.
var ErrUnknown = errors.New("no such checkpoint")

// Catalog is the catalog of one folder.
type Catalog struct {
	dir string

	mu      sync.Mutex
	folders map[string]*folder // guarded by mu: folders of folders, by path
	entries map[string]*Entry  // guarded by mu: by path
	sorted  []*Entry           // guarded by mu: the newest first; nil: to be made again

	generation uint64  // guarded by mu: grows with every change of what the catalog gives
	watch      watcher // guarded by mu
}

// folder is a folder whose folders are checkpoints, or again folders.
type folder struct {
	changed time.Time        // modification time when it was read; zero: to be read again
	pending map[string]stamp // what in it is no checkpoint, but may become one; with the manifest that could not be read, if any
	within  map[string]bool  // the folders of the checkpoints in it
}

// stamp tells whether a manifest is still the same.
type stamp struct {
	inode uint64
	size  int64
	mtime unix.Timespec
}

// settled is how long a folder must be unchanged before its modification time says so: file systems stamp with the time of the
// last tick.
const settled = 50 * time.Millisecond

// New makes a catalog of a folder, which need not exist yet.
func New(dir string) *Catalog {
	return &Catalog{dir: filepath.Clean(dir), folders: make(map[string]*folder), entries: make(map[string]*Entry), watch: watcher{fd: -1}}
}

// Dir is the folder.
func (c *Catalog) Dir() string { return c.dir }

// Home is the folder for a user's checkpoints, or for those of a job of a user.
func (c *Catalog) Home(uid uint32, job string) string {
	dir := c.dir
	if uid != 0 {
		dir = filepath.Join(dir, "users", strconv.FormatUint(uint64(uid), 10))
	}
	if job != "" {
		dir = filepath.Join(dir, "jobs", job)
	}
	return dir
}

// MakeHome makes the folder that Home names, readable by its owner, root, alone.
func (c *Catalog) MakeHome(uid uint32, job string) (string, error) {
	dir := c.Home(uid, job)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the folder for checkpoints: %w: set checkpoint.dir in the configuration to another", err)
	}
	return dir, nil
}

// List gives all checkpoints, the newest first. The list is the caller's to keep, but not to change.
func (c *Catalog) List() []*Entry {
	list, _ := c.Look()
	return list
}

// Look is List with a number that tells one list from the next: as long as it stays the same, so does the list, and so do those of its
// checkpoints that are watched (see Watch).
func (c *Catalog) Look() (list []*Entry, generation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.quietLocked() {
		c.lookLocked()
	}
	if c.sorted == nil {
		c.sorted = make([]*Entry, 0, len(c.entries))
		for _, e := range c.entries {
			c.sorted = append(c.sorted, e)
		}
		slices.SortFunc(c.sorted, newestFirst)
	}
	return c.sorted, c.generation
}

// changedLocked is called with every change of entries.
func (c *Catalog) changedLocked() {
	c.sorted = nil
	c.generation++
}

func newestFirst(a, b *Entry) int {
	return cmp.Or(b.Manifest.Created.Compare(a.Manifest.Created), cmp.Compare(b.Dir, a.Dir))
}

// Fresh looks whether a checkpoint of a list has changed since, or is gone: then it gives nil or the new state.
func (c *Catalog) Fresh(e *Entry) *Entry {
	now, err := stampOf(e.Dir)
	if err == nil && now == e.stamp {
		return e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takeLocked(e.Dir)
}

var (
	wholeID = regexp.MustCompile(`^[0-9a-f]{8,32}$`)
	aName   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@+=-]{0,127}$`)
)

// CheckName refuses names that would be awkward as a folder's, or that have a meaning of their own.
func CheckName(name string) error {
	if !aName.MatchString(name) {
		return fmt.Errorf("the name %q: use up to 128 letters, digits and _ . @ + = -, not beginning with . or -", name)
	}
	if name == "users" || name == "jobs" {
		return fmt.Errorf("the name %q is that of a folder of checkpoints: choose another", name)
	}
	return nil
}

// Find finds the checkpoint that a user means by a name, by an absolute path, or by an id or its beginning of at least 8 digits.
// Names are those of the user's own; a path may lie outside of the catalog's folder, and then only root may name it. Others'
// checkpoints are ErrUnknown like those that do not exist.
func (c *Catalog) Find(uid uint32, ref string) (*Entry, error) {
	e, err := c.find(uid, ref)
	if uid != 0 && (err != nil || e.Owner != uid) {
		// The same words, whether it is not there, damaged, or somebody else's.
		return nil, fmt.Errorf("%w of yours: %q is neither a name nor an id, or means several", ErrUnknown, ref)
	}
	return e, err
}

func (c *Catalog) find(uid uint32, ref string) (*Entry, error) {
	if filepath.IsAbs(ref) {
		return c.byPath(uid, filepath.Clean(ref))
	}
	if aName.MatchString(ref) && CheckName(ref) == nil {
		c.mu.Lock()
		e := c.takeLocked(filepath.Join(c.Home(uid, ""), ref))
		c.mu.Unlock()
		if e != nil {
			return e, nil
		}
	}
	var found []*Entry
	for _, e := range c.List() {
		if uid != 0 && e.Owner != uid {
			continue
		}
		if e.Job != "" && filepath.Base(e.Dir) == ref || wholeID.MatchString(ref) && strings.HasPrefix(e.Manifest.ID, ref) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %q is neither a name nor an id in %s", ErrUnknown, ref, c.dir)
	case 1:
		if e := c.Fresh(found[0]); e != nil {
			return e, nil
		}
		return nil, fmt.Errorf("%w: %s was deleted", ErrUnknown, ref)
	}
	return nil, fmt.Errorf("%w: %q is the beginning of %d ids, or a name in several jobs: write more of the id, or the path", ErrUnknown, ref, len(found))
}

func (c *Catalog) byPath(uid uint32, path string) (*Entry, error) {
	if c.inside(path) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if e := c.takeLocked(path); e != nil {
			return e, nil
		}
		return nil, fmt.Errorf("%w in %s", ErrUnknown, path)
	}
	if uid != 0 {
		return nil, fmt.Errorf("%w: %s (only root may name folders outside of %s)", ErrUnknown, path, c.dir)
	}
	return read(path, 0, "")
}

// Take notes at once what has happened to a folder, and gives the checkpoint that is there now, or nil.
func (c *Catalog) Take(dir string) *Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takeLocked(dir)
}

func (c *Catalog) takeLocked(dir string) *Entry {
	owner, job, ok := c.place(dir)
	if !ok {
		return nil
	}
	known := c.entries[dir]
	now, err := stampOf(dir)
	switch {
	case err == nil && known != nil && known.stamp == now:
		return known
	case err == nil:
		if e, err := read(dir, owner, job); err == nil {
			c.entries[dir] = e
			c.folderLocked(filepath.Dir(dir)).within[dir] = true
			c.changedLocked()
			return e
		}
	}
	if known != nil {
		c.removeLocked(dir)
		c.folderLocked(filepath.Dir(dir)).changed = time.Time{} // its folder may still be there, and become a checkpoint again
	}
	return nil
}

func (c *Catalog) removeLocked(dir string) {
	delete(c.entries, dir)
	delete(c.folders[filepath.Dir(dir)].within, dir)
	c.changedLocked()
}

// folderLocked gives what is known of a folder, which is nothing at first.
func (c *Catalog) folderLocked(path string) *folder {
	known := c.folders[path]
	if known == nil {
		known = &folder{pending: make(map[string]stamp), within: make(map[string]bool)}
		c.folders[path] = known
	}
	return known
}

// Has says whether a folder lies in the catalog's.
func (c *Catalog) Has(path string) bool { return c.inside(path) }

func (c *Catalog) inside(path string) bool { return strings.HasPrefix(path, c.dir+"/") }

// place says whose a folder would be as a checkpoint.
func (c *Catalog) place(dir string) (owner uint32, job string, ok bool) {
	rest, inside := strings.CutPrefix(dir, c.dir+"/")
	parts := strings.Split(rest, "/")
	if len(parts) > 2 && parts[0] == "users" {
		uid, err := strconv.ParseUint(parts[1], 10, 32)
		if err != nil {
			return 0, "", false
		}
		owner, parts = uint32(uid), parts[2:]
	}
	if len(parts) == 3 && parts[0] == "jobs" {
		job, parts = parts[1], parts[2:]
	}
	return owner, job, inside && len(parts) == 1 && CheckName(parts[0]) == nil
}

// lookLocked brings the catalog up to date.
func (c *Catalog) lookLocked() {
	seen := make(map[string]bool, len(c.folders)+1)
	c.watch.begin(c.dir)
	c.lookIntoLocked(c.dir, seen)
	for path := range c.folders {
		if !seen[path] {
			c.forgetLocked(path)
		}
	}
	c.watch.done()
}

// forgetLocked drops a folder that is gone, and what was in it.
func (c *Catalog) forgetLocked(path string) {
	for dir := range c.folders[path].within {
		c.removeLocked(dir)
	}
	delete(c.folders, path)
}

func (c *Catalog) lookIntoLocked(path string, seen map[string]bool) {
	c.watch.folder(path) // before anything in it is looked at
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return
	}
	seen[path] = true
	known := c.folderLocked(path)
	if known.changed != info.ModTime() {
		c.readLocked(path, known)
		known.changed = info.ModTime()
		if time.Since(info.ModTime()) < settled {
			known.changed = time.Time{}
		}
	}
	for name, bad := range known.pending {
		dir := filepath.Join(path, name)
		if c.holdsFolders(dir) {
			c.lookIntoLocked(dir, seen)
			continue
		}
		if c.tryLocked(known, name, dir, bad) {
			continue
		}
		// One that is none is watched. It may just have become one.
		if c.watch.folder(dir) {
			c.tryLocked(known, name, dir, known.pending[name])
		}
	}
}

// tryLocked looks whether what may become a checkpoint is one.
func (c *Catalog) tryLocked(home *folder, name, dir string, bad stamp) bool {
	now, err := stampOf(dir)
	if err != nil || now == bad {
		return false
	}
	if c.takeLocked(dir) == nil {
		home.pending[name] = now
		return false
	}
	delete(home.pending, name)
	return true
}

// readLocked reads the names in a folder.
func (c *Catalog) readLocked(path string, known *folder) {
	list, err := os.ReadDir(path)
	if err != nil && len(list) == 0 {
		return
	}
	now := make(map[string]bool, len(list))
	for _, e := range list {
		if !e.IsDir() {
			continue
		}
		now[e.Name()] = true
		if dir := filepath.Join(path, e.Name()); c.entries[dir] == nil {
			known.pending[e.Name()] = stamp{}
		}
	}
	for name := range known.pending {
		if !now[name] {
			delete(known.pending, name)
		}
	}
	for dir := range known.within {
		if !now[filepath.Base(dir)] {
			c.removeLocked(dir)
		}
	}
}

// holdsFolders says whether a folder is one of those that hold others.
func (c *Catalog) holdsFolders(dir string) bool {
	parts := strings.Split(strings.TrimPrefix(dir, c.dir+"/"), "/")
	if parts[0] == "users" {
		if len(parts) <= 2 {
			return true
		}
		parts = parts[2:]
	}
	return parts[0] == "jobs" && len(parts) <= 2
}

func stampOf(dir string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, store.ManifestName), &st); err != nil {
		return stamp{}, fmt.Errorf("look at the manifest in %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp{}, fmt.Errorf("the manifest in %s: %w", dir, fs.ErrInvalid)
	}
	return stamp{inode: st.Ino, size: st.Size, mtime: st.Mtim}, nil
}

// read reads a manifest, and keeps what lists show.
func read(dir string, owner uint32, job string) (*Entry, error) {
	mark, err := stampOf(dir)
	if err != nil {
		return nil, fmt.Errorf("%w in %s", ErrUnknown, dir)
	}
	src, err := store.OpenFolder(dir)
	if err != nil {
		return nil, err
	}
	m, err := image.ReadManifest(src)
	if err != nil {
		return nil, err
	}
	e := &Entry{Dir: dir, Owner: owner, Job: job, Manifest: m, Count: len(m.Processes), stamp: mark}
	for _, s := range m.Shards {
		e.Bytes += s.Size
	}
	m.Processes = slices.DeleteFunc(m.Processes, func(p image.Process) bool { return p.PID != m.RootPID })
	for i, p := range m.Processes {
		m.Processes[i] = image.Process{PID: p.PID, PPID: p.PPID, Comm: strings.Clone(p.Comm)}
	}
	m.Processes = slices.Clip(m.Processes)
	m.Host.CPUFeatures = nil
	return e, nil
}
