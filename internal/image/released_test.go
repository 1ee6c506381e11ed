package image_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// TestReleasedFormats reads small checkpoints of the formats before differences. They are kept in testdata and never written
// again.
func TestReleasedFormats(t *testing.T) {
	for version := 1; version < image.FormatVersion; version++ {
		src, err := store.OpenFolder(filepath.Join("testdata", fmt.Sprintf("v%d", version)))
		if err != nil {
			t.Fatal(err)
		}
		if err := imagetest.Use(src); err != nil {
			t.Fatal(err)
		}
		c := imagetest.Open(t, src)
		checkBlocks(t, c, model{7: {0x10: 1, 0x11: 9, 0x40: 3}, 8: {0x10: 0, 0x20: 20}})
		if got := string(imagetest.FileOf(t, c, "core-7.img")); got != "CRIU knows what is in here" {
			t.Errorf("its file has %q", got)
		}
		if m := c.Manifest(); m.Stasis != "1.2.3" || m.Kind != image.KindFull || len(c.Files()) != 2 {
			t.Errorf("its manifest is %+v", m)
		}
	}
}

// TestReleasedDifferences reads a checkpoint of format 2 on its parent.
func TestReleasedDifferences(t *testing.T) {
	folder := func(i int) string { return filepath.Join("testdata", fmt.Sprintf("v2-%d", i)) }
	if _, err := os.Stat(folder(0)); err != nil && *update {
		for i, l := range imagetest.Counters(t, 3, 3, writer.Options{Codec: imagetest.NewCodec(t, "zstd"), Shards: 2}) {
			keepFormat(t, folder(i), l.Memory)
		}
	}
	want := imagetest.Counters(t, 3, 3, writer.Options{})
	for i := range want {
		src, err := store.OpenFolder(folder(i))
		if err != nil {
			t.Fatal(err)
		}
		c, err := reader.OpenChain(src, func(id [16]byte) (store.Source, error) { return store.OpenFolder(folder(int(id[0]) - 1)) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		imagetest.CheckMemory(t, c, want[i].Content)
		if m := c.Manifest(); i > 0 && m.Format != 2 {
			t.Errorf("it is of format %d", m.Format)
		}
	}
}

// keepFormat writes a checkpoint to a folder.
func keepFormat(t *testing.T, path string, from *storetest.Memory) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	target, err := store.CreateFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range from.Files {
		w, err := target.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
	}
	if err := target.Commit(from.Text); err != nil {
		t.Fatal(err)
	}
}
