package chain

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// world is folders of checkpoints, with what each of them must read as.
type world struct {
	t      *testing.T
	r      *rand.Rand
	places []string
	ckpts  map[string]*model // by folder: those that must restore
	count  int
}

// model is what a checkpoint holds: for each process and page the seed of its content, 0 for a page of zeros.
type model struct {
	id    string
	kind  string
	pages map[int]map[uint64]uint64
	state string // one of CRIU's images
}

// newWorld makes one in memory, where there is such a file system: on disk most of the time would go into waiting for it.
func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	const memory = "/dev/shm"
	if unix.Access(memory, unix.W_OK) == nil {
		t.Setenv("TMPDIR", memory)
	}
	return newWorldOnDisk(t, seed)
}

func newWorldOnDisk(t *testing.T, seed uint64) *world {
	t.Helper()
	root := t.TempDir()
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 7)), ckpts: map[string]*model{}}
	for _, name := range []string{"here", "else[w]here"} {
		place := filepath.Join(root, name)
		if err := os.Mkdir(place, 0o700); err != nil {
			t.Fatal(err)
		}
		w.places = append(w.places, place)
	}
	return w
}

// pageOf makes the content of a page.
func pageOf(seed uint64) []byte {
	b := make([]byte, image.PageSize)
	if seed == 0 {
		return b
	}
	r := rand.NewPCG(seed, 1)
	for i := 0; i < len(b); i += 8 {
		v := r.Uint64()
		if seed%3 == 0 {
			v &= 0xff // compresses
		}
		binary.LittleEndian.PutUint64(b[i:], v)
	}
	binary.LittleEndian.PutUint64(b, seed)
	return b
}

// next makes what a process tree became after a while.
func (w *world) next(m *model) *model {
	out := &model{kind: image.KindFull, pages: map[int]map[uint64]uint64{}, state: fmt.Sprint("state ", w.r.Uint64())}
	if m != nil {
		for pid, pages := range m.pages {
			out.pages[pid] = maps.Clone(pages)
		}
	}
	for _, pid := range []int{7, 9} {
		if out.pages[pid] == nil {
			out.pages[pid] = map[uint64]uint64{}
		}
		pages := out.pages[pid]
		change := []int{0, 3, 20, 70}[w.r.IntN(4)]
		if m == nil {
			change = 70
		}
		from := w.r.Uint64N(100)
		for i := range change {
			page := 0x1000 + from + uint64(i)
			switch w.r.IntN(20) {
			case 0:
				delete(pages, page)
			case 1:
				pages[page] = 0
			case 2: // stays
			default:
				pages[page] = 1 + w.r.Uint64N(1<<40)
			}
		}
	}
	return out
}

// dump writes a checkpoint of m into dir on top of parent, which may be "".
func (w *world) dump(dir, parent string, m *model) {
	w.t.Helper()
	w.count++
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], w.r.Uint64())
	binary.BigEndian.PutUint64(id[8:], uint64(w.count))
	m.id = hexID(id)
	names := codec.Names()
	c, err := codec.New(names[w.r.IntN(len(names))], 0)
	if err != nil {
		w.t.Fatal(err)
	}
	opts := writer.Options{Shards: 1 + w.r.IntN(3), Codec: c, ID: id}
	var old *model
	var lock *Lock
	if parent != "" {
		if lock, err = LockShared(w.t.Context(), parent); err != nil {
			w.t.Fatal(err)
		}
		p, err := lock.Open()
		if err != nil {
			w.t.Fatal(err)
		}
		defer p.Close()
		opts.Parent, old = p, w.ckpts[parent]
		if opts.ParentPath, err = filepath.Rel(dir, parent); err != nil {
			w.t.Fatal(err)
		}
	}
	target, err := store.CreateFolder(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	writer, err := writer.New(lock.Noting(target, dir), opts)
	if err != nil {
		w.t.Fatal(err)
	}
	present := map[int][]image.Range{}
	for pid, pages := range m.pages {
		for _, page := range slices.Sorted(maps.Keys(pages)) {
			present[pid] = append(present[pid], image.Range{Start: page * image.PageSize, End: (page + 1) * image.PageSize})
		}
		w.put(writer, pid, pages, old)
	}
	if err := writer.PutFile("core.img", strings.NewReader(m.state)); err != nil {
		w.t.Fatal(err)
	}
	manifest := &image.Manifest{Kind: m.kind, Created: time.Unix(int64(w.count)*3600, 0), Name: filepath.Base(dir), RootPID: 7, Processes: []image.Process{{PID: 7, Comm: "test"}}}
	if err := writer.Finish(present, manifest); err != nil {
		w.t.Fatal(err)
	}
	if err := lock.Unlock(); err != nil {
		w.t.Fatal(err)
	}
	w.ckpts[dir] = m
}

// put puts what changed since old, and some of what did not.
func (w *world) put(writer *writer.Writer, pid int, pages map[uint64]uint64, old *model) {
	w.t.Helper()
	var b image.PageBlock
	flush := func() {
		if len(b.Data) > 0 {
			if err := writer.PutPages(0, b); err != nil {
				w.t.Fatal(err)
			}
		}
		b = image.PageBlock{PID: pid}
	}
	flush()
	for _, page := range slices.Sorted(maps.Keys(pages)) {
		if old != nil {
			if seed, ok := old.pages[pid][page]; ok && seed == pages[page] && w.r.IntN(10) > 0 {
				continue
			}
		}
		if n := len(b.Extents); n > 0 && b.Extents[n-1].Addr+image.PageSize != page*image.PageSize && (page >= 1000 || w.r.IntN(2) == 0) {
			flush()
		}
		b.Extents = append(b.Extents, image.Extent{Addr: page * image.PageSize, Pages: 1})
		b.Data = append(b.Data, pageOf(pages[page])...)
		if len(b.Extents) == image.MaxPages || w.r.IntN(30) == 0 {
			flush()
		}
	}
	flush()
}

// read compares a checkpoint with what it must be.
func (w *world) read(dir string, m *model) error {
	c, err := Open(dir)
	if err != nil {
		return err
	}
	defer c.Close()
	var state bytes.Buffer
	if err := c.WriteFile("core.img", &state); err != nil {
		return err
	}
	if state.String() != m.state {
		return fmt.Errorf("%s has the state %q instead of %q", dir, state.String(), m.state)
	}
	var buf reader.Buffer
	for pid, pages := range m.pages {
		have := uint64(0)
		for _, r := range c.Ranges(pid) {
			have += r.Len() / image.PageSize
		}
		if have != uint64(len(pages)) {
			return fmt.Errorf("%s has %d pages of %d instead of %d", dir, have, pid, len(pages))
		}
		last, data := -1, []byte(nil)
		for _, page := range slices.Sorted(maps.Keys(pages)) {
			block, at, kind := c.Find(pid, page*image.PageSize)
			got := pageOf(0)
			if kind == image.Data {
				if block != last {
					if data, err = c.ReadBlock(block, &buf); err != nil {
						return err
					}
					last = block
				}
				got = data[at*image.PageSize:][:image.PageSize]
			}
			if kind == image.Absent || !bytes.Equal(got, pageOf(pages[page])) {
				return fmt.Errorf("%s: page %#x of %d is wrong", dir, page, pid)
			}
		}
	}
	return nil
}

// check reads all checkpoints that must restore.
func (w *world) check(when string) {
	w.t.Helper()
	for _, dir := range w.dirs() {
		if err := w.read(dir, w.ckpts[dir]); err != nil {
			w.t.Fatalf("%s: %v", when, err)
		}
	}
}

// checkBut reads all checkpoints; those in but may have lost their memory, but then have to say so.
func (w *world) checkBut(when string, but []string) {
	w.t.Helper()
	for _, dir := range w.dirs() {
		err := w.read(dir, w.ckpts[dir])
		if slices.Contains(but, dir) && (errors.Is(err, store.ErrNoCheckpoint) || errors.As(err, new(*DedupedError))) {
			continue
		}
		if err != nil {
			w.t.Fatalf("%s: %v", when, err)
		}
	}
}

func (w *world) dirs() []string { return slices.Sorted(maps.Keys(w.ckpts)) }

// pick chooses a checkpoint, or "".
func (w *world) pick() string {
	dirs := w.dirs()
	if len(dirs) == 0 {
		return ""
	}
	return dirs[w.r.IntN(len(dirs))]
}

func (w *world) newDir() string {
	w.count++
	return filepath.Join(w.places[min(w.r.IntN(4), 1)], fmt.Sprintf("c%03d", w.count))
}

// grow makes n checkpoints, in chains and branches.
func (w *world) grow(n int) {
	w.t.Helper()
	for range n {
		parent := w.pick()
		if w.r.IntN(6) == 0 {
			parent = ""
		}
		w.dump(w.newDir(), parent, w.next(w.ckpts[parent]))
	}
}

// line makes a chain of n in the first place and returns the folders. Of 160 pages each changes the half that the one before did not,
// and 16 are its own.
func (w *world) line(n int) []string {
	w.t.Helper()
	var dirs []string
	m, parent := &model{pages: map[int]map[uint64]uint64{7: {}}}, ""
	for i := range n {
		next := &model{kind: image.KindFull, pages: map[int]map[uint64]uint64{7: maps.Clone(m.pages[7])}, state: fmt.Sprint("state ", i)}
		maps.DeleteFunc(next.pages[7], func(page, _ uint64) bool { return page >= 1000 })
		for page := range uint64(160) {
			if i == 0 || int(page/80) == i%2 {
				next.pages[7][page] = uint64(3*(1000*i+int(page)) + 1)
			}
		}
		for page := range uint64(16) {
			next.pages[7][uint64(1000+100*i)+page] = uint64(3*(1000*i+500+int(page)) + 1)
		}
		dir := filepath.Join(w.places[0], fmt.Sprintf("line%d", i))
		w.dump(dir, parent, next)
		dirs, parent, m = append(dirs, dir), dir, next
	}
	return dirs
}

// disk sums up what a folder takes.
func disk(t *testing.T, dir string) (total int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		total += spaceOf(filepath.Join(dir, e.Name()))
	}
	return total
}
