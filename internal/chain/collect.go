package chain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/image/ondisk"
	"stasis/internal/store"
)

// Options of the operations that change checkpoints.
type Options struct {
	// Roots are folders, of a checkpoint or of checkpoints, that are looked at besides those beside the ones concerned.
	Roots []string
	// Force takes no account of checkpoints that can't be read or found, though they may need what is given up.
	Force bool
	// Thorough lets Dedup move what the top needs of blocks that it needs in part.
	Thorough bool
	// DryRun only tells what would be done.
	DryRun bool

	// pays decides for a Dedup that is not Thorough whether to be: with what moving would give back, what it would copy and what the top
	// has itself, which has to be written anew, in bytes. Nil: no.
	pays func(gain, cost, own int64) bool

	atStep func(step string) error // for tests: called before and after whatever changes something; an error is a crash
	known  map[string]*uses        // by folder
}

// step does something that changes the disk.
func (o *Options) step(name string, work func() error) error {
	if o.atStep != nil {
		if err := o.atStep("before " + name); err != nil {
			return err
		}
	}
	if err := work(); err != nil {
		return err
	}
	if o.atStep != nil {
		return o.atStep("after " + name)
	}
	return nil
}

// Report says what an operation did, or, with DryRun, would do.
type Report struct {
	Removed []Item `json:"removed"`          // no checkpoints any more
	Marked  []Item `json:"marked"`           // not restorable any more, because they gave up memory
	Kept    []Kept `json:"kept"`             // of what remains for others
	Freed   int64  `json:"bytes_freed"`      // bytes of disk that were given back
	Later   []Kept `json:"later"`            // what could not be given back now, and why
	TopID   string `json:"top_id,omitempty"` // of Dedup: the id of the top, a new one after a thorough deduplication that wrote it anew
}

// newReport makes one without nulls for programs.
func newReport() *Report {
	return &Report{Removed: []Item{}, Marked: []Item{}, Kept: []Kept{}, Later: []Kept{}}
}

// Item names a checkpoint.
type Item struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Dir  string `json:"dir"`
	Kind string `json:"kind,omitempty"`
}

// Kept is what stays of a checkpoint.
type Kept struct {
	Item
	Bytes int64    `json:"bytes"`         // that others need
	For   []string `json:"for,omitempty"` // folders of those
	Why   string   `json:"why,omitempty"` // it was not looked into
}

func (e *entry) item() Item {
	i := Item{ID: e.id, Dir: e.dir, Name: filepath.Base(e.dir)}
	if e.m != nil {
		i.Kind = e.m.Kind
		if e.m.Name != "" {
			i.Name = e.m.Name
		}
	}
	return i
}

// collect gives back what nobody needs of what is there for others only: list has removed and marked checkpoints. Those that nobody
// needs anything of are deleted, if they are removed. The lock has to hold them; those that it does not hold come later.
func (f *forest) collect(list []*entry, l *Lock, o *Options, r *Report) error {
	ids := map[string]bool{}
	var ours []*entry
	for _, e := range list {
		if !o.DryRun && !l.has(e.dir) {
			r.Later = append(r.Later, Kept{Item: e.item(), Why: "it is in use"})
			continue
		}
		ours = append(ours, e)
		ids[e.id] = true
	}
	wanted, err := f.needsOf(ids, nil, o)
	if isUnknown(err) {
		for _, e := range ours {
			r.Later = append(r.Later, Kept{Item: e.item(), Why: err.Error()})
		}
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range ours {
		if err := f.collectOne(e, wanted, o, r); err != nil {
			return err
		}
	}
	return nil
}

// collectOne gives back what nobody needs of one removed or marked checkpoint.
func (f *forest) collectOne(e *entry, wanted needs, o *Options, r *Report) error {
	if unknown := f.unknownElsewhere(e, o); unknown != nil {
		r.Later = append(r.Later, Kept{Item: e.item(), Why: unknown.Error()})
		return nil
	}
	if e.removed && !wanted.of(e.id) {
		if err := f.forgetNotes(e, o); err != nil {
			return err
		}
		return deleteFolder(e, o, r)
	}
	kept := Kept{Item: e.item(), Bytes: wanted.bytes(e.id)}
	for _, d := range f.dependents(e) {
		kept.For = append(kept.For, d.dir)
	}
	r.Kept = append(r.Kept, kept)
	if e.m == nil {
		return nil // nobody knows its shards
	}
	for i, s := range e.m.Shards {
		freed, err := punch(filepath.Join(e.dir, s.Name), wanted[shardOf{e.id, i}], o)
		r.Freed += freed
		switch {
		case errors.Is(err, fs.ErrNotExist): // whoever needs it has lost it already
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			r.Later = append(r.Later, Kept{Item: e.item(), Why: "its file system can't take parts out of files"})
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// forgetNotes removes what other folders note about a checkpoint that goes.
func (f *forest) forgetNotes(e *entry, o *Options) error {
	for _, other := range f.entries {
		for _, n := range other.notes {
			if n.ID != e.id || o.DryRun {
				continue
			}
			path := noteIn(other.dir, n.ID)
			err := o.step("forget "+path, func() error { return os.Remove(path) })
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("cannot remove the checkpoint %s: %w", e.dir, err)
			}
		}
	}
	return nil
}

// hole is the unit in which file systems give back space, in bytes.
const hole = 4096

// punch takes everything out of a shard that is not in keep, nor its header, index or footer. It returns the bytes of disk that this
// gave back.
func punch(path string, keep []span, o *Options) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("cannot give back parts of a shard: %w", err)
	}
	defer f.Close()
	end, err := ondisk.IndexOffset(f)
	if err != nil {
		return 0, nil // it is damaged, and left as it is for whoever needs it
	}
	before, would := onDisk(f), int64(0)
	at := int64(image.ShardHeader)
	for _, s := range append(keep[:len(keep):len(keep)], span{end, end}) {
		from, to := (at+hole-1)&^(hole-1), s.from&^(hole-1)
		if from < to && o.DryRun {
			would += to - from
		} else if from < to {
			err := o.step("punch "+path, func() error {
				return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
			})
			if err != nil {
				return before - onDisk(f), fmt.Errorf("cannot give back parts of %s: %w", path, err)
			}
		}
		at = max(at, s.to)
	}
	if o.DryRun {
		return min(would, before), nil
	}
	return before - onDisk(f), nil
}

// checkHoles sees that the file system of a folder can take parts out of files, before anything is given up for that.
func checkHoles(dir string) error {
	f, err := os.CreateTemp(dir, ".holes.*")
	if err != nil {
		return fmt.Errorf("cannot change the checkpoint %s: %w", dir, err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("cannot change the checkpoint %s: %w", dir, err)
	}
	_, err = f.Write(make([]byte, 2*hole))
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, hole)
	}
	if err != nil {
		return fmt.Errorf("the file system of %s can't take parts out of files (%w): compact the newest checkpoint and remove the others instead", dir, err)
	}
	return nil
}

// onDisk is the space that a file takes, in bytes.
func onDisk(f *os.File) int64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0
	}
	return st.Blocks * 512
}

var ours = regexp.MustCompile(`^(img-[0-9]{1,5}|` + notePrefix + `[0-9a-f]{32}\.json)$`)

// deleteFolder removes all that Stasis put into the folder of a removed checkpoint. The file that says that it was removed goes last,
// so that whatever is left after a crash is found and goes the next time. Files of others stay, and the folder with them.
func deleteFolder(e *entry, o *Options, r *Report) error {
	entries, err := os.ReadDir(e.dir)
	if err != nil {
		return fmt.Errorf("cannot remove the checkpoint %s: %w", e.dir, err)
	}
	names := make([]string, 0, len(entries))
	for _, d := range entries {
		if ours.MatchString(d.Name()) && d.Type().IsRegular() {
			names = append(names, d.Name())
		}
	}
	for _, name := range append(names, dedupedName, store.RemovedName) {
		path := filepath.Join(e.dir, name)
		r.Freed += spaceOf(path)
		if o.DryRun {
			continue
		}
		err := o.step("delete "+path, func() error { return os.Remove(path) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove the checkpoint %s: %w", e.dir, err)
		}
	}
	if o.DryRun {
		return nil
	}
	return o.step("delete "+e.dir, func() error {
		if err := unix.Rmdir(e.dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("cannot remove the folder %s: %w", e.dir, err)
		}
		return nil
	})
}

// spaceOf is what deleting a file gives back, in bytes.
func spaceOf(path string) int64 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Nlink > 1 {
		return 0
	}
	return st.Blocks * 512
}

// blocksOf is the space that a file takes on disk, in bytes.
func blocksOf(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
