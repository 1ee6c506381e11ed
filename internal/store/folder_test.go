package store_test

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/store"
)

// TestMain is also the child of TestKilled.
func TestMain(m *testing.M) {
	if path := os.Getenv("STASIS_TEST_WRITE_AND_WAIT"); path != "" {
		writeAndWait(path, os.Getenv("STASIS_TEST_NAMED") != "")
		return
	}
	m.Run()
}

// writeAndWait writes half a checkpoint, says so, and waits to be killed.
func writeAndWait(path string, named bool) {
	target, err := store.CreateFolder(path)
	if err != nil {
		panic(err)
	}
	if named {
		target.NamedFiles()
	}
	for _, name := range []string{"img-0", "img-1"} {
		w, err := target.Create(name)
		if err != nil {
			panic(err)
		}
		if _, err := w.Write(append([]byte(store.Magic), make([]byte, 3<<20)...)); err != nil {
			panic(err)
		}
		if name == "img-0" {
			if err := w.Finish(); err != nil {
				panic(err)
			}
		}
	}
	_, _ = os.Stdout.WriteString("written\n")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// list returns the names in a folder.
func list(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func wantFiles(t *testing.T, path string, want ...string) {
	t.Helper()
	if got := list(t, path); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s has %q instead of %q", path, got, want)
	}
}

func wantGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", path, err)
	}
}

// wantError sees that err says all of that.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
}

func start(t *testing.T, path string) *store.FolderTarget {
	t.Helper()
	target, err := store.CreateFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Abort() })
	return target
}

func writeFile(t *testing.T, target store.Target, name, text string) {
	t.Helper()
	w, err := target.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
}

func TestKilled(t *testing.T) {
	for _, named := range []string{"", "yes"} {
		path := filepath.Join(t.TempDir(), "checkpoint")
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), "STASIS_TEST_WRITE_AND_WAIT="+path, "STASIS_TEST_NAMED="+named)
		stdin, err := child.StdinPipe() // held open until the end: the child waits for it
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stdin.Close() })
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "written\n" {
			t.Fatalf("the child said %q (%v)", line, err)
		}
		if _, err := store.CreateFolder(path); !errors.Is(err, store.ErrBusy) {
			t.Errorf("a second writer: %v", err)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
		if named == "" {
			wantFiles(t, path)
		} else {
			wantFiles(t, path, "img-0.partial", "img-1.partial")
		}
		if _, err := store.OpenFolder(path); !errors.Is(err, store.ErrNoCheckpoint) {
			t.Errorf("opening what a killed process left: %v", err)
		}
		again := start(t, path)
		wantFiles(t, path)
		writeFile(t, again, "img-0", "x")
		if err := again.Commit([]byte("{}")); err != nil {
			t.Fatal(err)
		}
		wantFiles(t, path, "img-0", "manifest.json")
	}
}

func TestFolderModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoint")
	target := start(t, path)
	writeFile(t, target, "img-0", "x")
	wantFiles(t, path)
	if err := target.Commit([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"": 0o700, "img-0": 0o600, "manifest.json": 0o600} {
		st, err := os.Stat(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %v instead of %v", name, st.Mode().Perm(), want)
		}
	}
}

func TestCreateFolderRefuses(t *testing.T) {
	dir := t.TempDir()
	t.Run("checkpoint there", func(t *testing.T) {
		path := filepath.Join(dir, "full")
		target := start(t, path)
		if err := target.Commit([]byte("{}")); err != nil {
			t.Fatal(err)
		}
		_, err := store.CreateFolder(path)
		wantError(t, err, path, "already exists", "choose another folder")
		if !errors.Is(err, store.ErrExists) {
			t.Error("it is not ErrExists")
		}
		wantFiles(t, path, "manifest.json")
	})
	t.Run("no parent", func(t *testing.T) {
		_, err := store.CreateFolder(filepath.Join(dir, "none", "there"))
		wantError(t, err, "none/there", "parent must exist")
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := store.CreateFolder(path)
		wantError(t, err, path, "not a folder")
		_, err = store.CreateFolder(filepath.Join(path, "below"))
		wantError(t, err, path, "not a folder")
	})
	t.Run("foreign shard", func(t *testing.T) {
		path := filepath.Join(dir, "foreign")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "img-1"), []byte("something else"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := store.CreateFolder(path)
		wantError(t, err, path, "img-1", "move it away")
		wantFiles(t, path, "img-1")
	})
	t.Run("read-only", func(t *testing.T) {
		path := tmpfs(t, "size=1m,mode=700")
		if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		_, err := store.CreateFolder(filepath.Join(path, "checkpoint"))
		wantError(t, err, path, "read-only", "choose a folder on another one")
		target, err := store.CreateFolder(path) // it is there, and only writing to it fails
		if err != nil {
			t.Fatal(err)
		}
		_, err = target.Create("img-0")
		wantError(t, err, "img-0", "read-only", "choose a folder on another one")
		if err := target.Abort(); err != nil {
			t.Error(err)
		}
	})
}

// tmpfs mounts one for the time of the test.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, options); err != nil {
		t.Skipf("requires to mount a tmpfs (root, CAP_SYS_ADMIN): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestRemainsAreRemoved(t *testing.T) {
	path := t.TempDir()
	for name, text := range map[string]string{
		"img-0": store.Magic + "…", "img-1.partial": "", "img-2.partial": store.Magic, "manifest.json.partial": "{",
		"notes.txt": "keep", "img-x": "keep", "pages-1.img": "keep",
	} {
		if err := os.WriteFile(filepath.Join(path, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	target := start(t, path)
	wantFiles(t, path, "img-x", "notes.txt", "pages-1.img")
	writeFile(t, target, "img-0", "x")
	if err := target.Abort(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, path, "img-x", "notes.txt", "pages-1.img")
}

func TestAbortRemovesTheFolderItMade(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "made")
	target := start(t, path)
	writeFile(t, target, "img-0", "x")
	if err := target.Abort(); err != nil {
		t.Fatal(err)
	}
	wantGone(t, path)

	target = start(t, path) // someone else's file keeps it
	if err := os.WriteFile(filepath.Join(path, "theirs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := target.Abort(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, path, "theirs")

	target = start(t, dir) // it was there before
	if err := target.Abort(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, "made")
}

// TestCommitFails breaks the folder between Finish and Commit. The error must say what happened, and nothing may be left.
func TestCommitFails(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(path string) error
		says  []string
		left  []string
	}{
		{"vanished", os.RemoveAll, []string{"removed or replaced", "dump again"}, nil},
		{"replaced", func(path string) error {
			return errors.Join(os.Rename(path, path+"-moved"), os.Mkdir(path, 0o700))
		}, []string{"removed or replaced"}, []string{}},
		{"shard in the way", func(path string) error {
			return os.WriteFile(filepath.Join(path, "img-1"), []byte("theirs"), 0o600)
		}, []string{"img-1", "file exists", "move it away"}, []string{"img-1"}},
		{"manifest in the way", func(path string) error {
			return os.WriteFile(filepath.Join(path, "manifest.json"), []byte("theirs"), 0o600)
		}, []string{"manifest.json", "file exists"}, []string{"manifest.json"}},
	}
	for _, named := range []bool{false, true} {
		for _, test := range tests {
			path := filepath.Join(t.TempDir(), "checkpoint")
			target := start(t, path)
			if named {
				target.NamedFiles()
			}
			writeFile(t, target, "img-0", "0")
			writeFile(t, target, "img-1", "1")
			if err := test.spoil(path); err != nil {
				t.Fatal(err)
			}
			wantError(t, target.Commit([]byte("{}")), append(test.says, path)...)
			if err := target.Abort(); err != nil {
				t.Errorf("%s: abort: %v", test.name, err)
			}
			if test.left == nil {
				wantGone(t, path)
			} else {
				wantFiles(t, path, test.left...)
			}
		}
	}
}

func TestDiskFull(t *testing.T) {
	path := tmpfs(t, "size=4m,mode=700")
	for _, change := range []func(*store.FolderTarget){(*store.FolderTarget).NamedFiles, (*store.FolderTarget).Buffered, func(*store.FolderTarget) {}} {
		target := start(t, path)
		change(target)
		w, err := target.Create("img-0")
		if err != nil {
			t.Fatal(err)
		}
		for range 64 {
			if _, err = w.Write(make([]byte, 1<<20)); err != nil {
				break
			}
		}
		wantError(t, err, "img-0", "no space left", "free some space or choose a folder on another disk")
		wantError(t, w.Finish(), "no space left")
		wantError(t, target.Commit([]byte("{}")), "img-0")
		if err := target.Abort(); err != nil {
			t.Error(err)
		}
		wantFiles(t, path)
	}
	target := start(t, path) // the space is free again
	writeFile(t, target, "img-0", strings.Repeat("x", 3<<20))
	if err := target.Commit([]byte("{}")); err != nil {
		t.Fatal(err)
	}
}

func TestOpenFolderRefuses(t *testing.T) {
	dir := t.TempDir()
	_, err := store.OpenFolder(filepath.Join(dir, "none"))
	wantError(t, err, "none", "no checkpoint", "no such folder")
	_, err = store.OpenFolder(dir)
	wantError(t, err, dir, "no checkpoint", "manifest.json")
	if !errors.Is(err, store.ErrNoCheckpoint) {
		t.Error("it is not ErrNoCheckpoint")
	}
	if err := os.Mkdir(filepath.Join(dir, "manifest.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = store.OpenFolder(dir)
	wantError(t, err, "not a regular file")

	path := filepath.Join(dir, "checkpoint")
	if err := start(t, path).Commit([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	src, err := store.OpenFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../manifest.json", "manifest.json", "", "img-0"} {
		if _, err := src.Open(name); err == nil {
			t.Errorf("%q was opened", name)
		}
	}
	if err := unix.Mkfifo(filepath.Join(path, "img-0"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = src.Open("img-0") // must not hang
	wantError(t, err, "img-0", "not a regular file")
}
