package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"stasis/internal/require"
	"stasis/internal/store"
)

const somebody = 54321 // a user id that nobody has

// refuses wants a restore to be refused with these words, and to be made with the flag.
func (b *bench) refuses(args []string, parts ...string) {
	b.t.Helper()
	b.says(exitInput, args, append(parts, "--trust")...)
	if b.restored != nil {
		b.t.Errorf("%v: it was restored", args)
	}
	b.says(exitOK, append(args, "--trust"))
	if b.restored == nil {
		b.t.Errorf("%v: it was not restored with --trust", args)
	}
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Chown(path, uid, -1); err != nil {
		t.Fatal(err)
	}
}

// TestRestoreOfOthersCheckpoints: what another user could have written is restored when that is said, and not else.
func TestRestoreOfOthersCheckpoints(t *testing.T) {
	require.Root(t)
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "above", "one")
	above := filepath.Dir(dir)
	if err := os.Mkdir(above, 0o700); err != nil {
		t.Fatal(err)
	}
	checkpoint(t, dir, nil)
	restore := []string{"restore", "process", "--path", dir, "--detach"}
	b.says(exitOK, restore)

	for _, path := range []string{filepath.Join(dir, store.ManifestName), filepath.Join(dir, "img-1"), dir, above} {
		chown(t, path, somebody)
		b.refuses(restore, path, "belongs to user 54321")
		b.refuses([]string{"restore", "-D", dir, "--restore-detached"}, path)
		// Who has root by sudo could give the flag himself.
		b.environ = append(b.environ, "SUDO_UID=54321")
		b.says(exitOK, restore)
		b.environ[len(b.environ)-1] = "SUDO_UID=54322"
		b.says(exitInput, restore, path)
		b.environ = b.environ[:len(b.environ)-1]
		chown(t, path, 0)
	}
	if err := os.Chmod(above, 0o777); err != nil {
		t.Fatal(err)
	}
	b.refuses(restore, above, "can be written by others than root (mode 0777)")
	if err := os.Chmod(above, 0o777|os.ModeSticky); err != nil { // such as /tmp
		t.Fatal(err)
	}
	b.says(exitOK, restore)

	// By a path from here, and by a link of somebody else.
	t.Chdir(above)
	chown(t, dir, somebody)
	b.refuses([]string{"restore", "process", "--path", "one", "--detach"}, dir)
	chown(t, dir, 0)
	link := filepath.Join(above, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(link, somebody, -1); err != nil {
		t.Fatal(err)
	}
	b.refuses([]string{"restore", "process", "--path", link, "--detach"}, link)
}

// TestRestoreOfOthersAncestors: a checkpoint's memory is in its ancestors, too.
func TestRestoreOfOthersAncestors(t *testing.T) {
	require.Root(t)
	b := newBench(t)
	b.three()
	restore := []string{"restore", "process", "--path", "three", "--detach"}
	b.says(exitOK, restore)
	first := filepath.Join(b.dir, "one")
	chown(t, filepath.Join(first, "img-0"), somebody)
	b.refuses(restore, filepath.Join(first, "img-0"), "belongs to user 54321")

	// Elsewhere, where --also tells.
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Mkdir(elsewhere, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(first, filepath.Join(elsewhere, "one")); err != nil {
		t.Fatal(err)
	}
	restore = append(restore, "--also", elsewhere)
	b.refuses(restore, filepath.Join(elsewhere, "one", "img-0"))
	chown(t, filepath.Join(elsewhere, "one", "img-0"), 0)
	b.says(exitOK, restore)
}

// TestRestoreOfOthersStream: what comes through a pipe was handed over, but its ancestors are folders.
func TestRestoreOfOthersStream(t *testing.T) {
	require.Root(t)
	b := newBench(t)
	b.three()
	stream := filepath.Join(t.TempDir(), "stream")
	for name, trusted := range map[string]bool{"one": true, "three": false} {
		sendCheckpoint(t, filepath.Join(b.dir, name), stream)
		chown(t, stream, somebody)
		chown(t, filepath.Join(b.dir, "one", "img-0"), somebody)
		restore := func(more ...string) []string {
			file, err := os.Open(stream)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { file.Close() })
			b.in = file
			return append([]string{"restore", "process", "--path", "-", "--detach", "--also", b.dir}, more...)
		}
		if trusted {
			b.says(exitOK, restore())
			continue
		}
		b.says(exitInput, restore(), filepath.Join(b.dir, "one", "img-0"))
		if b.restored != nil {
			t.Error("it was restored")
		}
		b.says(exitOK, restore("--trust"))
	}
}

// sendCheckpoint writes a checkpoint of one shard to a file as one stream.
func sendCheckpoint(t *testing.T, dir, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	shard, err := os.ReadFile(filepath.Join(dir, "img-0"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join(dir, store.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	target := store.NewStream(file)
	w, err := target.Create("img-0")
	if err == nil {
		_, err = w.Write(shard)
	}
	if err = errors.Join(err, w.Finish(), target.Commit(manifest)); err != nil {
		t.Fatal(err)
	}
}
