package convert

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/codec"
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// ImportOptions say how to import.
type ImportOptions struct {
	// Target makes the place for the checkpoint, when the images have been looked through. It is told the command of the root.
	Target func(command string) (store.Target, error)
	Name   string // of the checkpoint, for people; "": the command and the time of the dump
	Stasis string // version of Stasis, for the manifest

	Shards  int         // 1 to image.MaxShards
	Codec   codec.Codec // nil: none
	Workers int         // how many blocks to make at once; 0: one
	// AllowHoles takes pages in holes of the pages images for zeros. CRIU leaves holes where a later dump has the pages.
	AllowHoles bool
	Progress   func(done, total int64) // may be nil; bytes, from one goroutine at a time
}

// Imported tells what an import made.
type Imported struct {
	Manifest *image.Manifest `json:"manifest"`
	Layers   int             `json:"folders"`         // of CRIU, that memory came from
	Kept     int64           `json:"bytes_with_criu"` // memory that stays in CRIU's images, bytes
	Notes    []string        `json:"notes,omitempty"` // what is not known, or will not be restored
}

// Import makes a checkpoint of what CRIU wrote into a folder, or of the archive that a container engine exported. Memory may be
// in the folder, in those that its link called parent leads to, or in a checkpoint of Stasis in the same folder, as a page server
// writes it. Nothing of it is changed, and the checkpoint needs nothing of it. What fails leaves no checkpoint.
func Import(ctx context.Context, path string, o ImportOptions) (*Imported, error) {
	i := &importing{ctx: ctx, options: o, begun: time.Now(), id: newID()}
	defer i.close()
	result, err := i.run(path)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	return result, nil
}

func newID() (id [16]byte) {
	rand.Read(id[:])
	return id
}

// importing is one import under way.
type importing struct {
	ctx     context.Context
	options ImportOptions
	begun   time.Time
	id      [16]byte

	archive *archive // nil: a folder
	layers  *layers
	beside  *reader.Checkpoint // with memory, in the same folder; nil: none
	state   *state
	plans   []*plan
	files   []string        // images that stay as they are
	kept    map[string]bool // names that the checkpoint has
	nextID  uint32          // a number that no pages image has
	notes   []string
	closers []io.Closer
	writer  *writer.Writer
	meter   meter
}

// plan says what becomes of one page map.
type plan struct {
	image   string
	pid     int // 0: shared memory
	pagesID uint32
	ours    []stretch // for blocks
	theirs  []stretch // for CRIU's pages image
}

func (i *importing) close() {
	for _, c := range i.closers {
		_ = c.Close()
	}
}

// ErrImages says that what was to be imported cannot be: it is no dump, not a whole one, or damaged. Nothing was written.
var ErrImages = errors.New("cannot be imported")

// imagesError is an ErrImages that says why.
type imagesError struct{ error }

func (e imagesError) Unwrap() []error { return []error{ErrImages, e.error} }

func (i *importing) run(path string) (*Imported, error) {
	m, err := i.look(path)
	if err != nil && i.ctx.Err() == nil && !errors.Is(err, unix.ENOSPC) {
		err = imagesError{err}
	}
	if err != nil {
		return nil, err
	}
	return i.write(m)
}

// look reads all that there is but for the memory, and decides what becomes of that.
func (i *importing) look(path string) (*image.Manifest, error) {
	if err := i.open(path); err != nil {
		return nil, err
	}
	var err error
	if i.state, err = readState(i.layers.top()); err != nil {
		return nil, err
	}
	if err := i.list(); err != nil {
		return nil, err
	}
	if err := i.readSpaces(); err != nil {
		return nil, err
	}
	if err := i.checkHoles(); err != nil {
		return nil, err
	}
	if err := i.divide(); err != nil {
		return nil, err
	}
	return i.manifest()
}

// open finds the images: in a folder, or in an archive.
func (i *importing) open(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	dir, within := path, ""
	if !st.IsDir() {
		if i.archive, err = unpackArchive(i.ctx, path); err != nil {
			return err
		}
		i.closers = append(i.closers, i.archive)
		i.notes = append(i.notes, i.archive.notes()...)
		dir, within = i.archive.images, i.archive.root
	} else if _, err := os.Stat(filepath.Join(path, inventoryImage)); errors.Is(err, fs.ErrNotExist) {
		// An unpacked archive, or the folder of a container engine.
		if below := filepath.Join(path, archiveImages); hasInventory(below) {
			dir = below
		}
	}
	if i.layers, err = openLayers(dir, within); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, store.ManifestName)); err == nil && within == "" {
		line, err := OpenLine(i.ctx, dir, false)
		if err != nil {
			return err
		}
		i.closers, i.beside = append(i.closers, line), line.Checkpoints[0]
	}
	return nil
}

func hasInventory(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, inventoryImage))
	return err == nil
}

// list sorts the images of the folder into page maps, pages and the rest.
func (i *importing) list() error {
	names, err := criu.StateFiles(i.layers.top())
	if err != nil {
		return err
	}
	i.kept = map[string]bool{}
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, "pages-"):
			i.notePages(name)
		case strings.HasPrefix(name, shmemPrefix):
			i.plans = append(i.plans, &plan{image: name})
		case strings.HasPrefix(name, "pagemap-"): // those of processes that are none of the tree are of no use
		default:
			i.files = append(i.files, name)
			i.kept[name] = true
		}
	}
	if i.beside != nil {
		for _, f := range i.beside.Files() {
			i.notePages(f.Name)
		}
	}
	i.nextID++
	return nil
}

const shmemPrefix = "pagemap-shmem-"

func (i *importing) notePages(name string) {
	var id uint32
	if n, _ := fmt.Sscanf(name, "pages-%d.img", &id); n == 1 {
		i.nextID = max(i.nextID, id)
	}
}

// readSpaces finds out where each page of each process and each segment has its content.
func (i *importing) readSpaces() error {
	for _, p := range i.state.processes {
		if p.mm == nil {
			continue
		}
		plan := &plan{image: criu.PagemapImage(p.PID), pid: p.PID}
		inFolder := true
		if _, err := os.Stat(filepath.Join(i.layers.top(), plan.image)); errors.Is(err, fs.ErrNotExist) {
			inFolder = false
		}
		besides := i.beside != nil && slices.Contains(i.beside.PIDs(), p.PID)
		var err error
		switch {
		case inFolder && besides:
			return fmt.Errorf("the memory of process %d is there twice: in %s, and in the checkpoint beside it: remove one of them", p.PID, plan.image)
		case besides:
			plan.pagesID = i.nextID
			i.nextID++
			p.space = besideStretches(i.beside, p.PID)
		case inFolder:
			p.space, err = i.readSpace(plan)
		default:
			return fmt.Errorf("the memory of process %d is not there: %s is missing: if it went to a page server, put what that wrote into the same folder", p.PID, plan.image)
		}
		if err != nil {
			return fmt.Errorf("process %d: %w", p.PID, err)
		}
		i.plans = append(i.plans, plan)
	}
	for _, plan := range i.plans {
		if plan.pid > 0 {
			continue
		}
		var err error
		if plan.theirs, err = i.readSpace(plan); err != nil {
			return err
		}
	}
	return i.checkPagesIDs()
}

func (i *importing) readSpace(plan *plan) ([]stretch, error) {
	s, err := openSpace(i.layers, plan.image)
	if err != nil {
		return nil, err
	}
	i.closers = append(i.closers, s)
	plan.pagesID = s.levels[0].pagesID
	return s.stretches()
}

// checkPagesIDs sees that no two page maps have the same pages image.
func (i *importing) checkPagesIDs() error {
	seen := map[uint32]string{}
	for _, plan := range i.plans {
		if other, twice := seen[plan.pagesID]; twice {
			return fmt.Errorf("%s and %s have the same image of pages, %s", other, plan.image, criu.PagesImage(plan.pagesID))
		}
		seen[plan.pagesID] = plan.image
	}
	return nil
}

// checkHoles refuses pages that a later dump has taken out: reading them gives zeros.
func (i *importing) checkHoles() error {
	if i.options.AllowHoles {
		return nil
	}
	for _, plan := range i.plans {
		list := plan.theirs
		if p := i.state.byPID[plan.pid]; p != nil {
			list = p.space
		}
		if pages, file := inHoles(list); pages > 0 {
			return fmt.Errorf("%d pages of %s lie in holes of %s: CRIU makes holes where a later dump has the pages (dedup, --auto-dedup); import that later dump, or, if the file was only copied sparsely, say --allow-holes",
				pages, plan.image, file)
		}
	}
	return nil
}

// divide decides which pages go to blocks, and which stay in CRIU's images.
func (i *importing) divide() error {
	shared, err := i.sharedAreas()
	if err != nil {
		return err
	}
	for _, plan := range i.plans {
		p := i.state.byPID[plan.pid]
		if p == nil {
			continue
		}
		areas := p.lazyableAreas()
		for _, s := range p.space {
			for len(areas) > 0 && areas[0].End <= s.start {
				areas = areas[1:]
			}
			at := s.start
			for n := 0; n < len(areas) && areas[n].Start < s.end(); n++ {
				if shared[areas[n]] {
					continue
				}
				part := s.part(areas[n].Start, areas[n].End)
				if at < part.start {
					plan.theirs = append(plan.theirs, s.part(at, part.start))
				}
				plan.ours = append(plan.ours, part)
				at = part.end()
			}
			if at < s.end() {
				plan.theirs = append(plan.theirs, s.part(at, s.end()))
			}
		}
	}
	return nil
}

// write makes the checkpoint.
func (i *importing) write(m *image.Manifest) (result *Imported, err error) {
	target, err := i.options.Target(i.command())
	if err != nil {
		return nil, err
	}
	i.writer, err = writer.New(target, writer.Options{Shards: i.options.Shards, Codec: i.options.Codec, ID: i.id})
	if err != nil {
		return nil, explained(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(explained(err), i.writer.Abort())
		}
	}()
	result = &Imported{Manifest: m, Layers: len(i.layers.dirs)}
	present := map[int][]image.Range{}
	var ours int64
	for _, plan := range i.plans {
		for _, s := range plan.ours {
			i.meter.total += s.bytes()
			ours += s.bytes()
			present[plan.pid] = append(present[plan.pid], image.Range{Start: s.start, End: s.end()})
		}
		for _, s := range plan.theirs {
			i.meter.total += s.bytes()
			result.Kept += s.bytes()
		}
	}
	i.meter.tell = i.options.Progress
	begun := time.Now()
	if err := i.writeBlocks(); err != nil {
		return nil, err
	}
	m.Figures.Rounds = []image.Round{{Pages: ours / pageSize, Bytes: ours, US: time.Since(begun).Microseconds()}}
	if err := i.writeFiles(); err != nil {
		return nil, err
	}
	m.Figures.DumpUS = time.Since(i.begun).Microseconds()
	if err := i.writer.Finish(present, m); err != nil {
		return nil, err
	}
	result.Notes = i.notes
	return result, nil
}

// writeFiles stores CRIU's images: the rewritten ones, then those that stay as they are.
func (i *importing) writeFiles() error {
	for _, plan := range i.plans {
		var runs []criu.PageRun
		for _, s := range plan.theirs {
			flags := criu.PagePresent
			if n := len(runs); n > 0 && runs[n-1].End() == s.start {
				runs[n-1].Pages += s.pages
				continue
			}
			runs = append(runs, criu.PageRun{Start: s.start, Pages: s.pages, Flags: flags})
		}
		text, err := criu.EncodePagemap(plan.pagesID, runs)
		if err != nil {
			return err
		}
		if err := i.writer.PutFile(plan.image, bytes.NewReader(text)); err != nil {
			return err
		}
		pages := &pagesReader{ctx: i.ctx, rest: plan.theirs, meter: &i.meter}
		if err := i.writer.PutFile(criu.PagesImage(plan.pagesID), pages); err != nil {
			return err
		}
	}
	for _, name := range i.files {
		if err := i.putImage(i.layers.top(), name); err != nil {
			return err
		}
	}
	if err := i.putBeside(); err != nil {
		return err
	}
	if i.archive != nil {
		for _, name := range i.archive.extras {
			if err := i.putImage(i.archive.root, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (i *importing) putImage(dir, name string) error {
	f, _, err := openImage(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	return i.writer.PutFile(name, f)
}

// command is that of the root.
func (i *importing) command() string { return i.state.processes[0].core.GetTc().GetComm() }
