package writer_test

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
	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
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
				w, err := writer.New(m, writer.Options{Shards: 2, ID: imagetest.ID})
				if err != nil {
					return err
				}
				err = errors.Join(
					w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 0x1000, Pages: 1}}, Data: imagetest.Tagged(1, 1)}),
					w.PutFile("core.img", strings.NewReader("x")),
				)
				if finishErr := w.Finish(map[int][]image.Range{7: {{Start: 0x1000, End: 0x2000}}}, imagetest.Manifest()); finishErr != nil || err != nil {
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
	w, m := imagetest.Begin(t, 1, "none")
	imagetest.Put(t, w, 0, 7, imagetest.Tagged(1, 1), image.Extent{Addr: 0x1000, Pages: 1})
	imagetest.Finish(t, w, map[int][]image.Range{7: {imagetest.PagesOf(0x1000, 1)}})
	for what, err := range map[string]error{
		"PutPages": w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 0x1000, Pages: 1}}, Data: imagetest.Tagged(1, 1)}),
		"PutZero":  w.PutZero(0, 7, []image.Range{imagetest.PagesOf(0x1000, 1)}),
		"PutFile":  w.PutFile("a", strings.NewReader("x")),
		"Finish":   w.Finish(nil, imagetest.Manifest()),
	} {
		if !errors.Is(err, writer.ErrEnded) {
			t.Errorf("%s after Finish: %v", what, err)
		}
	}
	if err := w.Abort(); err != nil || m.Text == nil {
		t.Errorf("Abort after Finish: %v", err)
	}
}

func TestMissingPages(t *testing.T) {
	w, m := imagetest.Begin(t, 2, "none")
	imagetest.Put(t, w, 0, 7, imagetest.Tagged(1, 3), image.Extent{Addr: 0x1000, Pages: 1}, image.Extent{Addr: 0x5000, Pages: 2})
	err := w.Finish(map[int][]image.Range{7: {imagetest.PagesOf(0x1000, 5)}}, imagetest.Manifest())
	var missing *image.MissingError
	if !errors.As(err, &missing) || missing.PID != 7 || missing.Pages != 3 || missing.First != (image.Range{Start: 0x2000, End: 0x5000}) {
		t.Fatal(err)
	}
	if m.Text != nil {
		t.Error("it was published")
	}
	if err := w.Abort(); err != nil || !m.Aborted {
		t.Error(err)
	}
	w, _ = imagetest.Begin(t, 1, "none") // a process that nothing was captured of
	if err := w.Finish(map[int][]image.Range{9: {imagetest.PagesOf(0, 1)}}, imagetest.Manifest()); !errors.As(err, &missing) || missing.PID != 9 {
		t.Error(err)
	}
}

func TestBadPuts(t *testing.T) {
	w, _ := imagetest.Begin(t, 1, "none")
	page := imagetest.Tagged(1, 1)
	tests := map[string]error{
		"no pid":          w.PutPages(0, image.PageBlock{PID: 0, Extents: []image.Extent{{Addr: 0x1000, Pages: 1}}, Data: page}),
		"negative round":  w.PutPages(-1, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 0x1000, Pages: 1}}, Data: page}),
		"huge round":      w.PutPages(writer.MostRounds+1, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 0x1000, Pages: 1}}, Data: page}),
		"no pages":        w.PutPages(0, image.PageBlock{PID: 7, Extents: nil, Data: nil}),
		"empty extent":    w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 0x1000, Pages: 1}, {Addr: 0x2000, Pages: 0}}, Data: page}),
		"unaligned":       w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 0x1001, Pages: 1}}, Data: page}),
		"beyond all":      w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: image.MaxAddr, Pages: 1}}, Data: page}),
		"too little data": w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 0x1000, Pages: 2}}, Data: page}),
		"too much data":   w.PutPages(0, image.PageBlock{PID: 7, Extents: []image.Extent{{Addr: 0x1000, Pages: 65}}, Data: imagetest.Tagged(1, 65)}),
		"zero, empty":     w.PutZero(0, 7, []image.Range{{Start: 0x1000, End: 0x1000}}),
		"zero, unaligned": w.PutZero(0, 7, []image.Range{{Start: 0x1000, End: 0x1001}}),
		"zero, no pid":    w.PutZero(0, -1, []image.Range{{Start: 0x1000, End: 0x2000}}),
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
	imagetest.Put(t, w, 0, 7, page, image.Extent{Addr: 0x1000, Pages: 1})
	imagetest.PutFile(t, w, "core.img", nil)
	if err := w.PutFile("core.img", strings.NewReader("x")); err == nil {
		t.Error("a file was put twice")
	}
	imagetest.Finish(t, w, map[int][]image.Range{7: {imagetest.PagesOf(0x1000, 1)}})

	for _, shards := range []int{0, -1, image.MaxShards + 1} {
		m := storetest.NewMemory()
		if _, err := writer.New(m, writer.Options{Shards: shards}); err == nil || !m.Aborted {
			t.Errorf("%d shards: %v, aborted %v", shards, err, m.Aborted)
		}
	}
}

// TestFileReaderFails sees that a checkpoint with half a file can't be completed.
func TestFileReaderFails(t *testing.T) {
	w, m := imagetest.Begin(t, 1, "none")
	broken := errors.New("broken on purpose")
	if err := w.PutFile("core.img", &imagetest.FailingReader{N: 300_000, Err: broken}); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := w.Finish(nil, imagetest.Manifest()); !errors.Is(err, broken) || m.Text != nil {
		t.Errorf("Finish: %v", err)
	}
}

func TestEmptyCheckpoint(t *testing.T) {
	w, m := imagetest.Begin(t, 3, "zstd")
	imagetest.Finish(t, w, nil)
	c := imagetest.Open(t, m)
	if c.Blocks() != 0 || len(c.PIDs()) != 0 || len(c.Files()) != 0 {
		t.Error("there is something in it")
	}
	if err := c.WriteFile("core.img", &bytes.Buffer{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := imagetest.Use(m); err != nil {
		t.Error(err)
	}
}

// TestRandomDataIsStoredRaw sees that what does not compress takes no more than it is.
func TestRandomDataIsStoredRaw(t *testing.T) {
	data := make([]byte, 64*image.PageSize)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	for _, codecName := range codec.Names() {
		w, m := imagetest.Begin(t, 1, codecName)
		imagetest.Put(t, w, 0, 7, data, image.Extent{Addr: 0x1000, Pages: 64})
		imagetest.Finish(t, w, map[int][]image.Range{7: {imagetest.PagesOf(0x1000, 64)}})
		c := imagetest.Open(t, m)
		if info := c.Block(0); info.Codec != codec.None || info.Stored != len(data) {
			t.Errorf("%s: %+v", codecName, info)
		}
		got, err := c.ReadBlock(0, new(reader.Buffer))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: it differs (%v)", codecName, err)
		}
	}
}

// TestStreamToFolder sends a checkpoint through the form for pipes.
func TestStreamToFolder(t *testing.T) {
	var pipe bytes.Buffer
	w, err := writer.New(store.NewStream(&pipe), writer.Options{Shards: 2, Codec: imagetest.NewCodec(t, "zstd"), ID: imagetest.ID})
	if err != nil {
		t.Fatal(err)
	}
	imagetest.Put(t, w, 0, 7, imagetest.Tagged(1, 64), image.Extent{Addr: 0x1000, Pages: 64})
	imagetest.PutFile(t, w, "core-7.img", imagetest.Tagged(1, 150))
	imagetest.Finish(t, w, map[int][]image.Range{7: {imagetest.PagesOf(0x1000, 64)}})
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
	if err := imagetest.Use(src); err != nil {
		t.Fatal(err)
	}
}
