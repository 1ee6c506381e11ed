package jobs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stasis/internal/jobs/db"
	"stasis/internal/require"
)

// layout describes all files below a folder.
func layout(t *testing.T, dir string) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&text, "%s %v", name, info.Mode())
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&text, " %d %q", info.ModTime().UnixNano(), content)
		case info.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(path)
			text.WriteString(" " + target)
		}
		text.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestFilesComeBackAsTheyWere(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	write(t, filepath.Join(data, "tree/a"), "one")
	write(t, filepath.Join(data, "tree/sub/b"), "two")
	write(t, filepath.Join(data, "single"), "three")
	if err := os.Symlink("sub/b", filepath.Join(data, "tree/link")); err != nil {
		t.Fatal(err)
	}
	j := &job{}
	cp := &db.Checkpoint{Seq: 1, Dir: filepath.Join(dir, "000001")}
	paths := []string{filepath.Join(data, "tree"), filepath.Join(data, "single"), filepath.Join(data, "absent"), filepath.Join(data, "absent-tree")}
	if err := j.keepFiles(cp, paths); err != nil {
		t.Fatal(err)
	}
	if err := syncFiles(cp); err != nil {
		t.Fatal(err)
	}
	want := layout(t, data)
	// Everything about them changes.
	write(t, filepath.Join(data, "tree/a"), "ONE AND MORE")
	write(t, filepath.Join(data, "tree/new"), "new")
	write(t, filepath.Join(data, "absent"), "here now")
	write(t, filepath.Join(data, "absent-tree/x"), "here now")
	write(t, filepath.Join(data, ".single.stasis-17", "new"), "of an attempt that was cut short")
	for _, gone := range []string{"tree/sub", "tree/link", "single"} {
		if err := os.RemoveAll(filepath.Join(data, gone)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the copies are not used up
		if err := j.putFilesBack(cp); err != nil {
			t.Fatal(err)
		}
		if got := layout(t, data); got != want {
			t.Fatalf("put back:\n%s\nwant:\n%s", got, want)
		}
	}
	if err := j.keepFiles(&db.Checkpoint{Dir: filepath.Join(dir, "2")}, []string{"/dev/null"}); err == nil {
		t.Error("a device was kept as a file")
	}
}

// The files of a real job are of the same moment as its memory, and come back with it.
func TestFilesAndMemoryAreOfOneMoment(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	dir := t.TempDir()
	m := openReal(t, dir, nil)
	data := filepath.Join(dir, "data")
	write(t, filepath.Join(data, "keep"), "A")
	spec := counting()
	spec.Name, spec.WithFiles = "sum", []string{data}
	spec.Env = append(spec.Env, "STASIS_TEST_FILE="+filepath.Join(data, "n"))
	if _, err := m.Run(t.Context(), spec, 0); err != nil {
		t.Fatal(err)
	}
	until(t, "it counts", func() bool { n, _ := counted(t, m, "sum"); return n > 50 })
	dumped, err := m.Dump(t.Context(), "sum", DumpRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var kept uint64
	text, err := os.ReadFile(filepath.Join(dumped.Dir+".files", "0", "n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 0 { // else it was being written just then
		if _, err := fmt.Sscan(string(text), &kept); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "it counts on", func() bool { n, _ := counted(t, m, "sum"); return n > kept+50 })
	write(t, filepath.Join(data, "keep"), "B")
	write(t, filepath.Join(data, "new"), "new")
	if _, err := m.Restore(t.Context(), "sum", RestoreRequest{}); err != nil {
		t.Fatal(err)
	}
	until(t, "it goes on", func() bool { _, back := counted(t, m, "sum"); return len(back) == 1 })
	if _, back := counted(t, m, "sum"); kept != 0 && (kept+1 < back[0][1]-1 || kept > back[0][1]) {
		t.Errorf("the file had %d, the memory went on with %d", kept, back[0][1])
	}
	if text, err := os.ReadFile(filepath.Join(data, "keep")); err != nil || string(text) != "A" {
		t.Errorf("the file has %q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(data, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file that came later: %v", err)
	}
}
