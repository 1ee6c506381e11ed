package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// Exported tells what an export wrote.
type Exported struct {
	Out     string           `json:"out"`
	Folders []ExportedFolder `json:"folders"` // oldest first; the last is that of the checkpoint itself
	Command []string         `json:"command"` // that restores it, with the options that CRIU needs for it
	Bytes   int64            `json:"bytes"`   // of all images
}

// ExportedFolder is one folder of CRIU's images.
type ExportedFolder struct {
	Dir         string `json:"dir"`
	ID          string `json:"id"`              // of the checkpoint
	Kind        string `json:"kind"`            // a pre-dump has memory only, and cannot be restored
	Pages       int64  `json:"pages"`           // whose content is in the folder
	ParentPages int64  `json:"pages_inherited"` // whose content is in the folder of the parent
}

// ExportOptions say how to export.
type ExportOptions struct {
	Chain    bool                    // a folder for each of the line, even if it is one
	Workers  int                     // how many blocks to read at once; 0: one
	Progress func(done, total int64) // may be nil; bytes, from one goroutine at a time
}

// Export writes the last of a line of checkpoints into the folder out, so that "criu restore -D out" restores it. out must not be
// there, or be empty. With o.Chain each of the line, which is oldest first and each the parent of the next, gets a folder of its
// own in out, named 1, 2, …, with a link called parent to the one before, and without the pages that are the same there. Without
// it only the last counts.
//
// The caller has opened the checkpoints, with their ancestors, and closes them. What fails leaves nothing in out.
func Export(ctx context.Context, line []*reader.Checkpoint, out string, o ExportOptions) (*Exported, error) {
	last := line[len(line)-1].Manifest()
	if last.Kind != image.KindFull {
		return nil, fmt.Errorf("checkpoint %s is a pre-dump, which has memory only and cannot be restored: export a dump that was made on top of it", last.Name)
	}
	if !o.Chain {
		line = line[len(line)-1:]
	}
	dir, err := newOutDir(out)
	if err != nil {
		return nil, err
	}
	x := &export{ctx: ctx, options: o, chain: o.Chain, last: line[len(line)-1]}
	result, err := x.run(line, dir)
	if err == nil {
		err = dir.commit()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("export to %s: %w", dir.path, err), dir.abort())
	}
	return result, nil
}

// export is one export under way.
type export struct {
	ctx     context.Context
	options ExportOptions
	chain   bool
	last    *reader.Checkpoint // whose inventory pre-dumps get
	meter   meter
}

// folder is one checkpoint being written as a folder of CRIU.
type folder struct {
	*export
	checkpoint *reader.Checkpoint
	dir        string
	parent     *folder         // nil: it has none, or needs none
	layouts    map[int]*layout // of the processes whose memory is in blocks
	nextPages  uint32          // a number that no pages image has
}

func (x *export) run(line []*reader.Checkpoint, dir *outDir) (*Exported, error) {
	result := &Exported{Out: dir.path}
	var folders []*folder
	for i, c := range line {
		f := &folder{export: x, checkpoint: c, dir: dir.temp, layouts: map[int]*layout{}}
		final := dir.path
		if x.chain {
			f.dir, final = filepath.Join(dir.temp, strconv.Itoa(i+1)), filepath.Join(dir.path, strconv.Itoa(i+1))
		}
		if i > 0 {
			f.parent = folders[i-1]
		}
		if err := f.layOut(); err != nil {
			return nil, err
		}
		folders = append(folders, f)
		m := c.Manifest()
		entry := ExportedFolder{Dir: final, ID: m.ID, Kind: m.Kind}
		entry.Pages, entry.ParentPages = f.pages()
		result.Folders = append(result.Folders, entry)
	}
	for _, f := range folders {
		x.meter.total += f.bytes()
	}
	x.meter.tell = x.options.Progress
	if err := checkFree(dir.temp, x.meter.total); err != nil {
		return nil, err
	}
	for i, f := range folders {
		if err := f.write(i); err != nil {
			return nil, err
		}
	}
	result.Bytes = x.meter.total
	m := x.last.Manifest()
	result.Command = append([]string{"criu", "restore", "-D", result.Folders[len(line)-1].Dir}, restoreFlags(m)...)
	return result, nil
}

// layOut decides where in which pages image each page goes.
func (f *folder) layOut() error {
	c := f.checkpoint
	known := map[uint32]bool{}
	for _, file := range c.Files() {
		var id uint32
		if n, _ := fmt.Sscanf(file.Name, "pages-%d.img", &id); n == 1 {
			known[id] = true
			f.nextPages = max(f.nextPages, id)
		}
	}
	f.nextPages++
	for _, pid := range c.PIDs() {
		l, err := f.layOutProcess(pid)
		if err != nil {
			return fmt.Errorf("process %d of checkpoint %s: %w", pid, c.Manifest().Name, err)
		}
		f.layouts[pid] = l
	}
	return nil
}

func (f *folder) layOutProcess(pid int) (*layout, error) {
	c := f.checkpoint
	var own []criu.PageRun
	var pagesID uint32
	name := criu.PagemapImage(pid)
	switch {
	case f.has(name):
		var text bytes.Buffer
		err := c.WriteFile(name, &text)
		if err == nil {
			pagesID, own, err = criu.DecodePagemap(text.Bytes())
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	case c.Manifest().Kind == image.KindFull:
		return nil, fmt.Errorf("the checkpoint has memory of it, but no %s", name)
	default:
		pagesID = f.nextPages
		f.nextPages++
	}
	blocks := image.Subtract(c.Ranges(pid), c.ZeroRanges(pid)) // a page that is in no run is zero
	var inherited []image.Range
	if f.parent != nil {
		inherited = f.inherited(pid)
	}
	return layOut(pagesID, own, blocks, inherited)
}

func (f *folder) has(name string) bool {
	return slices.ContainsFunc(f.checkpoint.Files(), func(file image.FileInfo) bool { return file.Name == name })
}

// replaced names the images that are written anew.
func (f *folder) replaced() map[string]bool {
	names := map[string]bool{}
	for pid, l := range f.layouts {
		names[criu.PagemapImage(pid)], names[criu.PagesImage(l.pagesID)] = true, true
	}
	return names
}

func (f *folder) pages() (here, inherited int64) {
	for _, l := range f.layouts {
		for _, s := range l.slots {
			if s.from == fromParent {
				inherited += int64(s.Pages)
			} else {
				here += int64(s.Pages)
			}
		}
	}
	return here, inherited
}

// bytes is the size of all images.
func (f *folder) bytes() int64 {
	var total int64
	for _, l := range f.layouts {
		total += l.size
	}
	replaced := f.replaced()
	for _, file := range f.checkpoint.Files() {
		if !replaced[file.Name] {
			total += file.Size
		}
	}
	return total
}

// write writes the folder; the number is that in the line, from 0.
func (f *folder) write(number int) error {
	if f.chain {
		if err := os.Mkdir(f.dir, 0o700); err != nil {
			return explained(err)
		}
	}
	if f.parent != nil {
		if err := os.Symlink(filepath.Join("..", strconv.Itoa(number)), filepath.Join(f.dir, parentLink)); err != nil {
			return explained(err)
		}
	}
	if err := f.copyImages(); err != nil {
		return err
	}
	if err := f.writeMemory(); err != nil {
		return err
	}
	if f.checkpoint.Manifest().Kind == image.KindPreDump && !f.has(inventoryImage) {
		return f.writeInventory()
	}
	return nil
}

// copyImages writes the images that stay as they are.
func (f *folder) copyImages() error {
	replaced := f.replaced()
	for _, file := range f.checkpoint.Files() {
		if replaced[file.Name] {
			continue
		}
		if err := f.copyImage(file.Name); err != nil {
			return err
		}
	}
	return nil
}

func (f *folder) copyImage(name string) error {
	to, err := f.create(name)
	if err != nil {
		return err
	}
	err = f.checkpoint.WriteFile(name, counted{to, f.ctx, &f.meter})
	return finishFile(to, err)
}

func (f *folder) create(name string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(f.dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	return file, explained(err)
}

func (f *folder) writeFile(name string, text []byte) error {
	to, err := f.create(name)
	if err != nil {
		return err
	}
	_, err = to.Write(text)
	return finishFile(to, err)
}
