package image

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"stasis/internal/codec"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

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
		"huge round":      w.PutPages(mostRounds+1, PageBlock{7, []Extent{{0x1000, 1}}, page}),
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
