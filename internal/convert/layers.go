package convert

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
)

const (
	maxState   = 512 << 20 // no image of state is larger, in bytes
	maxPagemap = 1 << 30   // nor is a page map
	maxLayers  = 10000
)

// layers are a folder of CRIU and the ones that its link called parent leads to, newest first.
type layers struct {
	dirs    []string
	missing error // why the last of them has no parent although it has the link; nil: it has none
}

// openLayers follows the links from dir. Where within is given, none of them may lead out of it.
func openLayers(dir, within string) (*layers, error) {
	at, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("find CRIU's images: %w", err)
	}
	l := &layers{dirs: []string{at}}
	for {
		link := filepath.Join(at, parentLink)
		if _, err := os.Lstat(link); errors.Is(err, fs.ErrNotExist) {
			return l, nil
		}
		next, err := filepath.EvalSymlinks(link)
		if err == nil && within != "" && !strings.HasPrefix(next, within+string(filepath.Separator)) {
			err = errors.New("it leads out of the archive")
		}
		if err != nil {
			l.missing = fmt.Errorf("the parent of %s cannot be used: %w", at, err)
			return l, nil
		}
		if slices.Contains(l.dirs, next) {
			return nil, fmt.Errorf("the parents of %s go round in a circle", dir)
		}
		if at = next; len(l.dirs) == maxLayers {
			return nil, fmt.Errorf("%s has more than %d parents", dir, maxLayers)
		}
		l.dirs = append(l.dirs, at)
	}
}

func (l *layers) top() string { return l.dirs[0] }

// openImage opens an image. It never hangs, whatever has that name.
func openImage(dir, name string) (*os.File, int64, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("read CRIU's image: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.Name())
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("read CRIU's image: %w", err), f.Close())
	}
	return f, st.Size(), nil
}

// readImage reads an image of at most so many bytes.
func readImage(dir, name string, limit int64) ([]byte, error) {
	f, size, err := openImage(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fmt.Errorf("CRIU's image %s has %d bytes, and images of its kind have at most %d", f.Name(), size, limit)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(f, text); err != nil {
		return nil, fmt.Errorf("read CRIU's image %s: %w", f.Name(), err)
	}
	return text, nil
}

// content is what holds pages. It may be read from any number of goroutines.
type content interface {
	// readPages fills p from the place that a stretch names.
	readPages(p []byte, at int64) error
}

// stretch is a run of pages with where their content is.
type stretch struct {
	start uint64
	pages uint64
	in    content
	at    int64 // of the first page, in bytes
}

func (s stretch) end() uint64  { return s.start + s.pages*pageSize }
func (s stretch) bytes() int64 { return int64(s.pages) * pageSize }

// part is what of the stretch lies in [from, to), which it overlaps.
func (s stretch) part(from, to uint64) stretch {
	from, to = max(from, s.start), min(to, s.end())
	s.at += int64(from - s.start)
	s.start, s.pages = from, (to-from)/pageSize
	return s
}

// space is the memory of one process, or one segment of shared memory, as the page maps of all layers have it.
type space struct {
	layers *layers
	image  string      // name of the page map
	levels []*spaceMap // of the layers that were needed so far
	files  []io.Closer
}

// spaceMap is the page map of a space in one layer.
type spaceMap struct {
	pagesID uint32
	runs    []criu.PageRun
	places  []int64    // of each run's content in the pages image
	pages   *pagesFile // nil: no run is present
}

// pagesFile is an image of pages.
type pagesFile struct {
	file  *os.File
	holes []hole
}

// hole is a range of a file that takes no room on the disk, in bytes.
type hole struct{ from, to int64 }

var _ content = (*pagesFile)(nil)

func (f *pagesFile) readPages(p []byte, at int64) error {
	if _, err := f.file.ReadAt(p, at); err != nil {
		return fmt.Errorf("read CRIU's image %s: %w", f.file.Name(), err)
	}
	return nil
}

// inHole says whether any of the bytes lies in a hole.
func (f *pagesFile) inHole(at, n int64) bool {
	i := sort.Search(len(f.holes), func(i int) bool { return f.holes[i].to > at })
	return i < len(f.holes) && f.holes[i].from < at+n
}

// openSpace reads the page map of the newest layer.
func openSpace(l *layers, image string) (*space, error) {
	s := &space{layers: l, image: image}
	if _, err := s.level(0); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes the images with the pages.
func (s *space) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// level reads the page map of a layer, once. One that a parent lacks is empty.
func (s *space) level(n int) (*spaceMap, error) {
	if n < len(s.levels) {
		return s.levels[n], nil
	}
	if n >= len(s.layers.dirs) {
		if s.layers.missing != nil {
			return nil, s.layers.missing
		}
		return nil, fmt.Errorf("%s has pages that are said to be in its parent, and there is no link called %s: put that folder back",
			filepath.Join(s.layers.dirs[n-1], s.image), parentLink)
	}
	m, err := s.read(s.layers.dirs[n])
	if err != nil && (n == 0 || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	s.levels = append(s.levels, m)
	return m, nil
}

func (s *space) read(dir string) (*spaceMap, error) {
	m := &spaceMap{}
	text, err := readImage(dir, s.image, maxPagemap)
	if err != nil {
		return m, err
	}
	path := filepath.Join(dir, s.image)
	if m.pagesID, m.runs, err = criu.DecodePagemap(text); err != nil {
		return m, fmt.Errorf("CRIU's image %s is damaged: %w", path, err)
	}
	size := int64(0)
	for _, run := range m.runs {
		m.places = append(m.places, size)
		if run.Flags&criu.PagePresent != 0 {
			size += int64(run.Pages) * pageSize // a page map bounds addresses, so this cannot overflow
		}
	}
	if size == 0 {
		return m, nil
	}
	file, got, err := openImage(dir, criu.PagesImage(m.pagesID))
	if err != nil {
		return m, fmt.Errorf("%s: %w", s.image, notMissing(err))
	}
	s.files = append(s.files, file)
	if got < size {
		return m, fmt.Errorf("CRIU's image %s has %d bytes, and %s says %d: it is not whole", file.Name(), got, s.image, size)
	}
	m.pages = &pagesFile{file: file, holes: holesOf(file, size)}
	return m, nil
}

// notMissing keeps a page map without its pages from being taken for a layer that has neither.
func notMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%v: put it back", err) //nolint:errorlint // see above
	}
	return err
}

// holesOf finds the holes of a file, where its file system tells.
func holesOf(f *os.File, size int64) []hole {
	var holes []hole
	for at := int64(0); at < size; {
		from, err := f.Seek(at, unix.SEEK_HOLE)
		if err != nil || from >= size {
			break
		}
		to, err := f.Seek(from, unix.SEEK_DATA)
		if err != nil {
			to = size // up to the end
		}
		holes = append(holes, hole{from, to})
		at = to
	}
	return holes
}

// stretches lists all pages of the space, in order, with where each has its content.
func (s *space) stretches() ([]stretch, error) {
	top, err := s.level(0)
	if err != nil {
		return nil, err
	}
	var list []stretch
	for _, run := range top.runs {
		if list, err = s.resolve(list, 0, run.Start, run.End()); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// resolve finds the pages of [from, to) in a layer, or, where it says so, in the ones below it.
func (s *space) resolve(list []stretch, level int, from, to uint64) ([]stretch, error) {
	m, err := s.level(level)
	if err != nil {
		return nil, err
	}
	i := sort.Search(len(m.runs), func(i int) bool { return m.runs[i].End() > from })
	for ; from < to; i++ {
		if i == len(m.runs) || m.runs[i].Start > from {
			return nil, fmt.Errorf("%s lacks the page at %#x, which the folder after it refers to: put the right folder there",
				filepath.Join(s.layers.dirs[level], s.image), from)
		}
		run := m.runs[i]
		end := min(to, run.End())
		switch {
		case run.Flags&criu.PagePresent != 0:
			whole := stretch{start: run.Start, pages: run.Pages, in: m.pages, at: m.places[i]}
			list = append(list, whole.part(from, end))
		case run.Flags&criu.PageInParent != 0:
			if list, err = s.resolve(list, level+1, from, end); err != nil {
				return nil, err
			}
		case run.Flags&criu.PageLazy != 0:
			return nil, fmt.Errorf("%s lacks the pages at %#x, because the dump was made with --lazy-pages and their content is nowhere: dump without it",
				filepath.Join(s.layers.dirs[level], s.image), from)
		default:
			return nil, fmt.Errorf("%s says of the pages at %#x neither where they are nor that they are lazy", filepath.Join(s.layers.dirs[level], s.image), from)
		}
		from = end
	}
	return list, nil
}

// inHoles counts the pages whose content is a hole of their file.
func inHoles(list []stretch) (pages uint64, file string) {
	for _, s := range list {
		f, ok := s.in.(*pagesFile)
		if !ok || len(f.holes) == 0 {
			continue
		}
		for n := range s.pages {
			if f.inHole(s.at+int64(n)*pageSize, pageSize) {
				pages, file = pages+1, f.file.Name()
			}
		}
	}
	return pages, file
}
