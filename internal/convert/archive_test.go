package convert

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// pack makes an archive of what is in a folder, with names that begin with prefix, and of further files.
func pack(tb testing.TB, dir, prefix string, more ...*tar.Header) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h *tar.Header, text []byte) {
		h.Size, h.Mode = int64(len(text)), 0o600
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			tb.Fatal(err)
		}
	}
	if dir != "" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			tb.Fatal(err)
		}
		add(&tar.Header{Name: prefix + "/", Typeflag: tar.TypeDir}, nil)
		for _, e := range entries {
			if e.Type()&fs.ModeSymlink != 0 {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				tb.Fatal(err)
			}
			add(&tar.Header{Name: prefix + "/" + e.Name(), Typeflag: tar.TypeReg}, text)
		}
	}
	for _, h := range more {
		var text []byte
		if h.Typeflag == tar.TypeReg {
			text = []byte("content of " + h.Name)
		}
		add(h, text)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func regular(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeReg} }

func compressedBy(tb testing.TB, how string, text []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch how {
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		var err error
		if w, err = zstd.NewWriter(&out); err != nil {
			tb.Fatal(err)
		}
	default:
		return text
	}
	if _, err := w.Write(text); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// TestImportArchive: as the engines write them, with a pre-dump, and with what goes with a container.
func TestImportArchive(t *testing.T) {
	for i, how := range []string{"plain", "gzip", "zstd"} {
		root := t.TempDir()
		layers := 1 + i%2
		dir, want := putLayers(t, rand.New(rand.NewPCG(3, 4)), root, layers, 70, 71)
		more := []*tar.Header{regular("config.dump"), regular("spec.dump"), regular("rootfs-diff.tar"), regular("volumes/data.tar"), regular("dump.log")}
		if layers == 2 {
			more = append(more, &tar.Header{Name: "./checkpoint/parent", Typeflag: tar.TypeSymlink, Linkname: "../pre-checkpoint"})
		}
		text := pack(t, dir, "checkpoint", more...)
		if layers == 2 {
			text = joined(t, pack(t, filepath.Join(root, "0"), "pre-checkpoint"), text)
		}
		put(t, root, "archive", compressedBy(t, how, text))
		to := filepath.Join(root, "checkpoint")
		imported, err := importTo(t, filepath.Join(root, "archive"), to)
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		c := openFolder(t, to)
		for pid, memory := range want {
			all, _ := has(t, c, int(pid))
			compare(t, fmt.Sprintf("%s: process %d", how, pid), all, memory, false)
		}
		var text2 strings.Builder
		if err := c.WriteFile("config.dump", &text2); err != nil || text2.String() != "content of config.dump" {
			t.Errorf("%s: config.dump is %q, %v", how, text2.String(), err)
		}
		notes := strings.Join(imported.Notes, "\n")
		for _, part := range []string{"rootfs-diff.tar", "volumes", "kept in the checkpoint: config.dump, spec.dump"} {
			if !strings.Contains(notes, part) {
				t.Errorf("%s: nothing of %s in %q", how, part, notes)
			}
		}
	}
}

// joined makes one archive of two.
func joined(t *testing.T, archives ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, text := range archives {
		r := tar.NewReader(bytes.NewReader(text))
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(w, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestImportHostileArchives: nothing is written or read outside, and there is no checkpoint.
func TestImportHostileArchives(t *testing.T) {
	root := t.TempDir()
	dir, _ := putLayers(t, rand.New(rand.NewPCG(3, 4)), root, 1, 70)
	outside := t.TempDir()
	putLayer(t, outside, 70, 1, memory{3: pageOf("secret")}, nil)
	inherits := t.TempDir()
	putState(t, inherits, 70)
	putLayer(t, inherits, 70, 1, memory{3: pageOf(1)}, map[uint64]bool{3: true})
	for name, test := range map[string]struct {
		text []byte
		says string
	}{
		"not an archive":       {[]byte(strings.Repeat("no archive", 100)), "neither a folder nor an archive"},
		"empty":                {nil, "neither a folder nor an archive"},
		"cut short":            {pack(t, dir, "checkpoint")[:5000], "not a whole archive"},
		"gzip cut short":       {compressedBy(t, "gzip", pack(t, dir, "checkpoint"))[:900], "not a whole archive"},
		"zstd of something":    {compressedBy(t, "zstd", []byte("nothing")), "not a whole archive"},
		"no images":            {pack(t, "", "", regular("config.dump")), "not the exported checkpoint"},
		"images elsewhere":     {pack(t, dir, "../checkpoint"), "not the exported checkpoint"},
		"images at the top":    {pack(t, dir, "/"), "not the exported checkpoint"},
		"a parent outside":     {pack(t, inherits, "checkpoint", &tar.Header{Name: "checkpoint/parent", Typeflag: tar.TypeSymlink, Linkname: outside}), "leads out"},
		"an image that is one": {pack(t, "", "", &tar.Header{Name: "checkpoint/inventory.img", Typeflag: tar.TypeSymlink, Linkname: filepath.Join(dir, inventoryImage)}), "not the exported checkpoint"},
		"a large description":  {hugeDescription(t), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			put(t, root, "archive", test.text)
			to := filepath.Join(root, "checkpoint")
			_, err := importTo(t, filepath.Join(root, "archive"), to)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, should speak of %s", err, test.says)
			}
			wantNames(t, root, "0", "archive")
		})
	}
}

func hugeDescription(tb testing.TB) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: "config.dump", Typeflag: tar.TypeReg, Size: maxExtra + 10, Mode: 0o600}); err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(make([]byte, maxExtra+10)); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// FuzzArchive: whatever an archive is, unpacking it ends, and writes below its folder only.
func FuzzArchive(f *testing.F) {
	f.Add(pack(f, "", "", regular("checkpoint/inventory.img"), regular("config.dump"),
		&tar.Header{Name: "checkpoint/parent", Typeflag: tar.TypeSymlink, Linkname: "../pre-checkpoint"}))
	f.Add(compressedBy(f, "zstd", pack(f, "", "", regular("pre-checkpoint/pages-1.img"))))
	root := f.TempDir()
	name := filepath.Join(root, "archive")
	f.Fuzz(func(t *testing.T, text []byte) {
		put(t, root, "archive", text)
		a, err := unpackArchive(t.Context(), name)
		if err == nil {
			entries, _ := os.ReadDir(a.root)
			for _, e := range entries {
				if e.IsDir() && !imagesFolder(e.Name()) || !e.IsDir() && !slices.Contains(append(descriptions, "dump.log"), e.Name()) {
					t.Errorf("%s was unpacked", e.Name())
				}
			}
			a.Close()
		}
		wantNames(t, root, "archive")
	})
}
