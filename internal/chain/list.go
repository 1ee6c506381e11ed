package chain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stasis/internal/image"
)

// State says what a folder of a checkpoint is good for.
type State string

// The states.
const (
	StateWhole        State = "whole"        // it has all its memory, as far as sizes of files tell
	StateDeduplicated State = "deduplicated" // it gave up memory: see Dedup
	StateRemoved      State = "removed"      // it was removed, and the rest is for others
	StateUnreadable   State = "unreadable"   // its manifest can't be read, or an ancestor or a shard is missing
)

// Info is what List says of a checkpoint. Sizes are in bytes.
type Info struct {
	Item
	State           State     `json:"state"`
	Error           string    `json:"error,omitempty"` // why it is unreadable
	Parent          string    `json:"parent,omitempty"`
	Created         time.Time `json:"created"`
	PID             int       `json:"pid"` // of the root process
	Command         string    `json:"command,omitempty"`
	Depth           int       `json:"depth"`            // how many ancestors it was made on top of, as far as they are here
	BytesMemory     int64     `json:"bytes_memory"`     // that a restore brings back
	BytesReferenced int64     `json:"bytes_referenced"` // of it, that lie in ancestors
	BytesDisk       int64     `json:"bytes_disk"`       // what its folder takes
	Ancestors       []string  `json:"ancestors"`        // ids of those that hold memory of it
	Dependents      []Item    `json:"dependents"`       // those that need memory of it
}

// List describes all checkpoints in the folders of root, the oldest first, and those of which something is left.
func List(root string, roots ...string) ([]Info, error) {
	root = realPath(absolute(root))
	if _, err := os.ReadDir(root); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, fmt.Errorf("cannot list the checkpoints: %w", err)
	}
	f, err := scan(nil, append([]string{root}, roots...))
	if err != nil {
		return nil, err
	}
	var list []Info
	for _, e := range f.entries {
		if filepath.Dir(e.dir) == root && (e.removed || staleFor(e.dir) == "") {
			list = append(list, f.describe(e))
		}
	}
	slices.SortStableFunc(list, func(a, b Info) int { return a.Created.Compare(b.Created) })
	return list, nil
}

func (f *forest) describe(e *entry) Info {
	i := Info{Item: e.item(), State: StateWhole, BytesDisk: folderSpace(e.dir), Ancestors: []string{}, Dependents: []Item{}}
	switch {
	case e.removed:
		i.State = StateRemoved
	case e.mark != nil:
		i.State = StateDeduplicated
	case e.err != nil:
		i.State, i.Error = StateUnreadable, e.err.Error()
	default:
		if lacks := f.lacks(e); len(lacks) > 0 {
			i.State, i.Error = StateUnreadable, fmt.Sprintf("1 ancestor is missing, %s", lacks[0])
			if len(lacks) > 1 {
				i.Error = fmt.Sprintf("%d ancestors are missing, one is %s", len(lacks), lacks[0])
			}
		} else if bad := badShard(e); bad != "" {
			i.State, i.Error = StateUnreadable, bad
		}
	}
	for _, d := range f.dependents(e) {
		i.Dependents = append(i.Dependents, d.item())
	}
	if e.m == nil {
		return i
	}
	i.Parent, i.Created, i.PID, i.Command = e.m.Parent, e.m.Created, e.m.RootPID, Command(e.m)
	i.BytesMemory, i.BytesReferenced = e.m.Figures.BytesMemory, e.m.Figures.BytesReferenced
	for _, o := range e.m.Origins {
		i.Ancestors = append(i.Ancestors, o.ID)
	}
	i.Depth = f.depth(e)
	return i
}

// badShard says which shard is missing or has another size than it had, or is empty.
func badShard(e *entry) string {
	if e.m == nil {
		return ""
	}
	for _, s := range e.m.Shards {
		info, err := os.Stat(filepath.Join(e.dir, s.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return s.Name + " is missing"
		case err != nil:
			return err.Error()
		case info.Size() != s.Size:
			return fmt.Sprintf("%s has %d bytes instead of %d", s.Name, info.Size(), s.Size)
		}
	}
	return ""
}

// depth counts the parents, as far as they are known. Manifests can be made to form a circle, which ends it too.
func (f *forest) depth(e *entry) int {
	seen := map[*entry]bool{}
	for at := e; ; {
		seen[at] = true
		if at.m == nil || at.m.Parent == "" {
			return len(seen) - 1
		}
		next := f.ids[at.m.Parent]
		if len(next) == 0 || seen[next[0]] {
			return len(seen) - 1
		}
		at = next[0]
	}
}

// Command is what the root process of a checkpoint runs.
func Command(m *image.Manifest) string {
	for _, p := range m.Processes {
		if p.PID != m.RootPID {
			continue
		}
		if len(p.Cmdline) > 0 {
			return strings.TrimSpace(strings.Join(p.Cmdline, " ")) // some programs end theirs with blanks
		}
		return p.Comm
	}
	return ""
}

// folderSpace is what the files of a folder take on disk, in bytes.
func folderSpace(dir string) (total int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			total += blocksOf(info)
		}
	}
	return total
}
