package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"stasis/internal/codec"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// TestManyWriters puts pages and files from many goroutines at once, to disk.
func TestManyWriters(t *testing.T) {
	for _, codecName := range codec.Names() {
		t.Run(codecName, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "checkpoint")
			target, err := store.CreateFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			w, err := NewWriter(target, WriterOptions{Shards: 3, Codec: newCodec(t, codecName), ID: testID})
			if err != nil {
				t.Fatal(err)
			}
			const workers, blocks, pages = 6, 12, 20
			want, present := model{}, map[int][]Range{}
			var crew sync.WaitGroup
			errs := make([]error, 2*workers)
			for k := range workers {
				for i := range blocks {
					start := uint64(k*blocks+i) * pages
					present[7] = append(present[7], pagesOf(start*PageSize, pages))
					for p := range uint64(pages) {
						want.put(7, start+p, start+p+1)
					}
				}
				crew.Go(func() {
					for i := range blocks {
						start := uint64(k*blocks+i) * pages
						b := PageBlock{7, []Extent{{start * PageSize, pages}}, tagged(start+1, pages)}
						errs[k] = errors.Join(errs[k], w.PutPages(0, b))
					}
				})
				crew.Go(func() {
					errs[workers+k] = w.PutFile(fmt.Sprintf("core-%d.img", k), bytes.NewReader(tagged(uint64(k), 100)))
				})
			}
			crew.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			finish(t, w, present)
			src, err := store.OpenFolder(dir)
			if err != nil {
				t.Fatal(err)
			}
			c := open(t, src)
			checkBlocks(t, c, want)
			for k := range workers {
				if !bytes.Equal(fileOf(t, c, fmt.Sprintf("core-%d.img", k)), tagged(uint64(k), 100)) {
					t.Errorf("file %d differs", k)
				}
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 4 {
				t.Errorf("there are %d files", len(entries))
			}
		})
	}
}

// TestWriterFails makes the target fail at every operation: the error must come out, nothing may be published, and Abort must
// reach the target.
func TestWriterFails(t *testing.T) {
	broken := errors.New("broken on purpose")
	for _, operation := range []string{"create", "write", "finish", "commit"} {
		for after := range 6 {
			m, n := storetest.NewMemory(), 0
			var mu sync.Mutex
			m.Fail = func(op, _ string) error {
				mu.Lock()
				defer mu.Unlock()
				if op == operation {
					if n++; n > after {
						return broken
					}
				}
				return nil
			}
			err := func() error {
				w, err := NewWriter(m, WriterOptions{Shards: 2, ID: testID})
				if err != nil {
					return err
				}
				err = errors.Join(
					w.PutPages(0, PageBlock{7, []Extent{{0x1000, 1}}, tagged(1, 1)}),
					w.PutFile("core.img", strings.NewReader("x")),
				)
				if finishErr := w.Finish(map[int][]Range{7: {{0x1000, 0x2000}}}, testManifest()); finishErr != nil || err != nil {
					return errors.Join(err, finishErr, w.Abort())
				}
				return nil
			}()
			failed := m.Text == nil
			if failed != (err != nil) || failed != m.Aborted || failed && !errors.Is(err, broken) {
				t.Errorf("%s %d: error %v, published %v, aborted %v", operation, after, err, !failed, m.Aborted)
			}
			if !failed && after < 1 {
				t.Errorf("%s never failed", operation)
			}
		}
	}
}

func TestUseAfterEnd(t *testing.T) {
	w, m := begin(t, 1, "none")
	put(t, w, 0, 7, tagged(1, 1), Extent{0x1000, 1})
	finish(t, w, map[int][]Range{7: {pagesOf(0x1000, 1)}})
	for what, err := range map[string]error{
		"PutPages": w.PutPages(0, PageBlock{7, []Extent{{0x1000, 1}}, tagged(1, 1)}),
		"PutZero":  w.PutZero(0, 7, []Range{pagesOf(0x1000, 1)}),
		"PutFile":  w.PutFile("a", strings.NewReader("x")),
		"Finish":   w.Finish(nil, testManifest()),
	} {
		if !errors.Is(err, ErrEnded) {
			t.Errorf("%s after Finish: %v", what, err)
		}
	}
	if err := w.Abort(); err != nil || m.Text == nil {
		t.Errorf("Abort after Finish: %v", err)
	}
}

func TestMissingPages(t *testing.T) {
	w, m := begin(t, 2, "none")
	put(t, w, 0, 7, tagged(1, 3), Extent{0x1000, 1}, Extent{0x5000, 2})
	err := w.Finish(map[int][]Range{7: {pagesOf(0x1000, 5)}}, testManifest())
	var missing *MissingError
	if !errors.As(err, &missing) || missing.PID != 7 || missing.Pages != 3 || missing.First != (Range{0x2000, 0x5000}) {
		t.Fatal(err)
	}
	if m.Text != nil {
		t.Error("it was published")
	}
	if err := w.Abort(); err != nil || !m.Aborted {
		t.Error(err)
	}
	w, _ = begin(t, 1, "none") // a process that nothing was captured of
	if err := w.Finish(map[int][]Range{9: {pagesOf(0, 1)}}, testManifest()); !errors.As(err, &missing) || missing.PID != 9 {
		t.Error(err)
	}
}

func TestBadPuts(t *testing.T) {
	w, _ := begin(t, 1, "none")
	page := tagged(1, 1)
	tests := map[string]error{
		"no pid":          w.PutPages(0, PageBlock{0, []Extent{{0x1000, 1}}, page}),
		"negative round":  w.PutPages(-1, PageBlock{7, []Extent{{0x1000, 1}}, page}),
		"huge round":      w.PutPages(maxRound+1, PageBlock{7, []Extent{{0x1000, 1}}, page}),
		"no pages":        w.PutPages(0, PageBlock{7, nil, nil}),
		"empty extent":    w.PutPages(0, PageBlock{7, []Extent{{0x1000, 1}, {0x2000, 0}}, page}),
		"unaligned":       w.PutPages(0, PageBlock{7, []Extent{{0x1001, 1}}, page}),
		"beyond all":      w.PutPages(0, PageBlock{7, []Extent{{maxAddr, 1}}, page}),
		"too little data": w.PutPages(0, PageBlock{7, []Extent{{0x1000, 2}}, page}),
		"too much data":   w.PutPages(0, PageBlock{7, []Extent{{0x1000, 65}}, tagged(1, 65)}),
		"zero, empty":     w.PutZero(0, 7, []Range{{0x1000, 0x1000}}),
		"zero, unaligned": w.PutZero(0, 7, []Range{{0x1000, 0x1001}}),
		"zero, no pid":    w.PutZero(0, -1, []Range{{0x1000, 0x2000}}),
		"file, no name":   w.PutFile("", strings.NewReader("x")),
		"file, path":      w.PutFile("../x", strings.NewReader("x")),
		"file, dots":      w.PutFile("..", strings.NewReader("x")),
	}
	for what, err := range tests {
		if err == nil {
			t.Errorf("%s passed", what)
		}
	}
	// None of that spoils the checkpoint.
	put(t, w, 0, 7, page, Extent{0x1000, 1})
	putFile(t, w, "core.img", nil)
	if err := w.PutFile("core.img", strings.NewReader("x")); err == nil {
		t.Error("a file was put twice")
	}
	finish(t, w, map[int][]Range{7: {pagesOf(0x1000, 1)}})

	for _, shards := range []int{0, -1, MaxShards + 1} {
		m := storetest.NewMemory()
		if _, err := NewWriter(m, WriterOptions{Shards: shards}); err == nil || !m.Aborted {
			t.Errorf("%d shards: %v, aborted %v", shards, err, m.Aborted)
		}
	}
}

// TestFileReaderFails sees that a checkpoint with half a file can't be completed.
func TestFileReaderFails(t *testing.T) {
	w, m := begin(t, 1, "none")
	broken := errors.New("broken on purpose")
	if err := w.PutFile("core.img", &failingReader{300_000, broken}); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := w.Finish(nil, testManifest()); !errors.Is(err, broken) || m.Text != nil {
		t.Errorf("Finish: %v", err)
	}
}

func TestEmptyCheckpoint(t *testing.T) {
	w, m := begin(t, 3, "zstd")
	finish(t, w, nil)
	c := open(t, m)
	if c.Blocks() != 0 || len(c.PIDs()) != 0 || len(c.Files()) != 0 {
		t.Error("there is something in it")
	}
	if err := c.WriteFile("core.img", &bytes.Buffer{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := use(m); err != nil {
		t.Error(err)
	}
}

// TestRandomDataIsStoredRaw sees that what does not compress takes no more than it is.
func TestRandomDataIsStoredRaw(t *testing.T) {
	data := make([]byte, 64*PageSize)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	for _, codecName := range codec.Names() {
		w, m := begin(t, 1, codecName)
		put(t, w, 0, 7, data, Extent{0x1000, 64})
		finish(t, w, map[int][]Range{7: {pagesOf(0x1000, 64)}})
		c := open(t, m)
		if info := c.Block(0); info.Codec != codec.None || info.Stored != len(data) {
			t.Errorf("%s: %+v", codecName, info)
		}
		got, err := c.ReadBlock(0, new(Buffer))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: it differs (%v)", codecName, err)
		}
	}
}

func TestZeroPages(t *testing.T) {
	data := make([]byte, MaxBlock)
	if got := zeroPages(data); got != ^uint64(0) {
		t.Errorf("all zero: %x", got)
	}
	for i := range data[:5*PageSize] {
		if i%61 != 0 && i%PageSize > 8 && i%PageSize < PageSize-8 {
			continue // every page's ends, and some of the middle
		}
		data[i] = 1
		if got := zeroPages(data); got != ^(uint64(1) << (i / PageSize)) {
			t.Fatalf("byte %d is not zero: %x", i, got)
		}
		data[i] = 0
	}
	if got := zeroPages(data[:3*PageSize]); got != 7 {
		t.Errorf("three pages: %x", got)
	}
	if got := zeroPages(nil); got != 0 {
		t.Errorf("no page: %x", got)
	}
}

// TestStreamToFolder sends a checkpoint through the form for pipes.
func TestStreamToFolder(t *testing.T) {
	var pipe bytes.Buffer
	w, err := NewWriter(store.NewStream(&pipe), WriterOptions{Shards: 2, Codec: newCodec(t, "zstd"), ID: testID})
	if err != nil {
		t.Fatal(err)
	}
	put(t, w, 0, 7, tagged(1, 64), Extent{0x1000, 64})
	putFile(t, w, "core-7.img", tagged(1, 150))
	finish(t, w, map[int][]Range{7: {pagesOf(0x1000, 64)}})
	dir := filepath.Join(t.TempDir(), "checkpoint")
	target, err := store.CreateFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Receive(&pipe, target); err != nil {
		t.Fatal(err)
	}
	src, err := store.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := use(src); err != nil {
		t.Fatal(err)
	}
}
