package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"stasis/internal/store"
)

// Place is a target, and how to open what was committed to it.
type Place struct {
	Target store.Target
	Open   func() (store.Source, error)
}

// Run tests everything that package store promises of targets and sources. start makes an empty place and is called for each
// test.
func Run(t *testing.T, start func(t *testing.T) Place) {
	t.Helper()
	t.Run("round trip", func(t *testing.T) { roundTrip(t, start(t)) })
	t.Run("many at once", func(t *testing.T) { manyAtOnce(t, start(t)) })
	t.Run("nothing before commit", func(t *testing.T) { nothingBeforeCommit(t, start(t)) })
	t.Run("abort", func(t *testing.T) { abort(t, start(t)) })
	t.Run("ends once", func(t *testing.T) { endsOnce(t, start(t)) })
	t.Run("names", func(t *testing.T) { names(t, start(t)) })
	t.Run("reread", func(t *testing.T) { reread(t, start(t)) })
	t.Run("reads", func(t *testing.T) { reads(t, start(t)) })
}

// sizes are around those of pages, frames and buffers.
var sizes = []int{0, 1, 4095, 4096, 4097, 256<<10 - 1, 256 << 10, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 4096, 5<<20 + 77}

// content is as random as it must be for a mistake to show.
func content(seed, size int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func create(t *testing.T, target store.Target, name string) store.Writer {
	t.Helper()
	w, err := target.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// write writes b in pieces of odd sizes and finishes.
func write(w store.Writer, b []byte, piece int) error {
	for len(b) > 0 {
		n := min(piece, len(b))
		if got, err := w.Write(b[:n]); err != nil || got != n {
			return fmt.Errorf("write took %d of %d bytes: %w", got, n, err)
		}
		b = b[n:]
	}
	return w.Finish()
}

// readAll returns a file of a source.
func readAll(src store.Source, name string) ([]byte, error) {
	f, err := src.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, f.Size()+1))
}

func open(t *testing.T, p Place) store.Source {
	t.Helper()
	src, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	if src.Name() == "" {
		t.Error("the source has no name")
	}
	return src
}

func check(t *testing.T, src store.Source, name string, want []byte) {
	t.Helper()
	got, err := readAll(src, name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes that differ from the %d that were written", name, len(got), len(want))
	}
}

func roundTrip(t *testing.T, p Place) {
	t.Helper()
	for i, size := range sizes {
		if err := write(create(t, p.Target, fmt.Sprintf("img-%d", i)), content(i, size), 100_003*(i%3+1)); err != nil {
			t.Fatal(err)
		}
	}
	manifest := []byte(`{"it": "is here"}`)
	if err := p.Target.Commit(manifest); err != nil {
		t.Fatal(err)
	}
	src := open(t, p)
	for i, size := range sizes {
		check(t, src, fmt.Sprintf("img-%d", i), content(i, size))
	}
	if got, err := src.Manifest(); err != nil || !bytes.Equal(got, manifest) {
		t.Errorf("the manifest came back as %q (%v)", got, err)
	}
}

func manyAtOnce(t *testing.T, p Place) {
	t.Helper()
	const files = 8
	errs := make([]error, files)
	var all sync.WaitGroup
	for i := range files {
		all.Go(func() {
			w, err := p.Target.Create(fmt.Sprintf("img-%d", i))
			if err == nil {
				err = write(w, content(i, 2<<20+i*1111), 70_001)
			}
			errs[i] = err
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if err := p.Target.Commit([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	src := open(t, p)
	for i := range files {
		check(t, src, fmt.Sprintf("img-%d", i), content(i, 2<<20+i*1111))
	}
}

// absent sees that there is no checkpoint.
func absent(t *testing.T, p Place, when string) {
	t.Helper()
	if src, err := p.Open(); err == nil {
		if _, err = src.Manifest(); err == nil {
			t.Fatalf("there is a checkpoint %s", when)
		}
	}
}

func nothingBeforeCommit(t *testing.T, p Place) {
	t.Helper()
	absent(t, p, "before anything was written")
	w := create(t, p.Target, "img-0")
	if _, err := w.Write(content(1, 3<<20)); err != nil {
		t.Fatal(err)
	}
	absent(t, p, "while it is written")
	if err := p.Target.Commit([]byte("{}")); err == nil {
		t.Fatal("a checkpoint was committed with a file that was not finished")
	}
	absent(t, p, "after a commit that failed")
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	absent(t, p, "before it is committed")
	if err := p.Target.Commit(nil); err == nil {
		t.Fatal("a checkpoint was committed without a manifest")
	}
	if err := p.Target.Commit([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	check(t, open(t, p), "img-0", content(1, 3<<20))
}

func abort(t *testing.T, p Place) {
	t.Helper()
	finished, writing := create(t, p.Target, "img-0"), create(t, p.Target, "img-1")
	if err := write(finished, content(1, 1<<20+5), 1<<16); err != nil {
		t.Fatal(err)
	}
	if _, err := writing.Write(content(2, 2<<20+5)); err != nil {
		t.Fatal(err)
	}
	if err := writing.Abort(); err != nil {
		t.Error(err)
	}
	if _, err := writing.Write([]byte("x")); err == nil {
		t.Error("a file that was aborted can be written to")
	}
	if err := writing.Finish(); err == nil {
		t.Error("a file that was aborted can be finished")
	}
	if err := p.Target.Commit([]byte("{}")); err == nil {
		t.Error("a checkpoint was committed with a file that was aborted")
	}
	for range 2 {
		if err := p.Target.Abort(); err != nil {
			t.Error(err)
		}
	}
	absent(t, p, "after it was aborted")
	if err := p.Target.Commit([]byte("{}")); err == nil {
		t.Error("a checkpoint was committed after it was aborted")
	}
	if _, err := p.Target.Create("img-2"); err == nil {
		t.Error("a file was created after the checkpoint was aborted")
	}
}

func endsOnce(t *testing.T, p Place) {
	t.Helper()
	w := create(t, p.Target, "img-0")
	if err := write(w, content(1, 5000), 999); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err == nil {
		t.Error("a file was finished twice")
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a file that was finished can be written to")
	}
	if err := p.Target.Commit([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := p.Target.Commit([]byte("{}")); err == nil {
		t.Error("a checkpoint was committed twice")
	}
	if _, err := p.Target.Create("img-1"); err == nil {
		t.Error("a file was created after the checkpoint was committed")
	}
	if err := p.Target.Abort(); err != nil {
		t.Error("abort after commit:", err)
	}
	check(t, open(t, p), "img-0", content(1, 5000))
}

func names(t *testing.T, p Place) {
	t.Helper()
	for _, bad := range []string{"", ".", "..", "a/b", "../x", ".hidden", store.ManifestName, "a\nb", "a b", strings.Repeat("x", 65)} {
		if _, err := p.Target.Create(bad); err == nil {
			t.Errorf("a file named %q was created", bad)
		}
	}
	create(t, p.Target, "img-0")
	if _, err := p.Target.Create("img-0"); !errors.Is(err, store.ErrExists) {
		t.Errorf("creating a file twice: %v", err)
	}
	if err := p.Target.Abort(); err != nil {
		t.Error(err)
	}
}

func reread(t *testing.T, p Place) {
	t.Helper()
	w, want := create(t, p.Target, "img-0"), content(3, 2<<20+100)
	if err := write(w, want, 1<<18); err != nil {
		t.Fatal(err)
	}
	if r, ok := w.(store.Rereader); ok {
		got := make([]byte, 5000)
		for _, off := range []int{0, 1, 1 << 20, len(want) - len(got)} {
			if _, err := r.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+len(got)]) {
				t.Errorf("reading back at %d: wrong bytes, or %v", off, err)
			}
		}
	}
	if err := p.Target.Commit([]byte("{}")); err != nil {
		t.Fatal(err)
	}
}

func reads(t *testing.T, p Place) {
	t.Helper()
	want := content(4, 1<<20+321)
	if err := write(create(t, p.Target, "img-0"), want, 1<<18); err != nil {
		t.Fatal(err)
	}
	if err := p.Target.Commit([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	src := open(t, p)
	if _, err := src.Open("img-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening a file that is not there: %v", err)
	}
	f, err := src.Open("img-0")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Size() != int64(len(want)) {
		t.Errorf("its size is %d instead of %d", f.Size(), len(want))
	}
	b := make([]byte, 100)
	if n, err := f.ReadAt(b, f.Size()-50); n != 50 || !errors.Is(err, io.EOF) {
		t.Errorf("reading beyond the end returned %d, %v", n, err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			b := make([]byte, 10_000)
			for off := i * 1000; off+len(b) < len(want); off += 77_777 {
				if _, err := f.ReadAt(b, int64(off)); err != nil || !bytes.Equal(b, want[off:off+len(b)]) {
					t.Errorf("reading at %d: wrong bytes, or %v", off, err)
				}
			}
		})
	}
	all.Wait()
}
