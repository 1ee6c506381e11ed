package image

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"stasis/internal/store"
)

// TestReleasedFormats reads a small checkpoint of every format version that there ever was. They are kept in testdata and never
// written again; -update adds that of a new version.
func TestReleasedFormats(t *testing.T) {
	now := filepath.Join("testdata", fmt.Sprintf("v%d", FormatVersion))
	if _, err := os.Stat(now); err != nil && *update {
		keepFormat(t, now)
	}
	for version := 1; version <= FormatVersion; version++ {
		src, err := store.OpenFolder(filepath.Join("testdata", fmt.Sprintf("v%d", version)))
		if err != nil {
			t.Fatal(err)
		}
		if err := use(src); err != nil {
			t.Fatal(err)
		}
		c := open(t, src)
		checkBlocks(t, c, model{7: {0x10: 1, 0x11: 9, 0x40: 3}, 8: {0x10: 0, 0x20: 20}})
		if got := string(fileOf(t, c, "core-7.img")); got != "CRIU knows what is in here" {
			t.Errorf("its file has %q", got)
		}
		if m := c.Manifest(); m.Stasis != "1.2.3" || m.Kind != KindFull || len(c.Files()) != 2 {
			t.Errorf("its manifest is %+v", m)
		}
	}
}

// keepFormat writes smallCheckpoint to a folder.
func keepFormat(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	target, err := store.CreateFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	from := smallCheckpoint(t, 2, "zstd", testID)
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
