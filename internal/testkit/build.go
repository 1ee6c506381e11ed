package testkit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
	"stasis/test/programs"
)

// cache returns the folder of built programs. It outlives the test process, so
// that a program is compiled once for each version of its sources. Another user
// could have made a folder of that name: such a one is refused.
func cache(t T) string {
	t.Helper()
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("stasis-test-programs-%d", os.Getuid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		t.Fatalf("folder for test programs: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() || st.Mode&0o022 != 0 {
		t.Fatalf("%s is not a folder that only we can write to: remove it", dir)
	}
	return dir
}

// sources copies the files of fsys below root into dir and returns a hash of
// their names and contents.
func sources(fsys fs.FS, root, dir string) (string, error) {
	hash := sha256.New()
	err := fs.WalkDir(fsys, root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(fsys, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(hash, "%s %d\n%s", path, len(text), text)
		if dir == "" {
			return nil
		}
		return os.WriteFile(filepath.Join(dir, filepath.Base(path)), text, 0o644)
	})
	return hex.EncodeToString(hash.Sum(nil))[:16], err
}

// build runs a command in a folder with the sources and returns the folder,
// which then holds its result too. Several test processes may do so at once:
// each works in a folder of its own, and the first to finish gives it its name.
func build(t T, name string, fsys fs.FS, root string, command ...string) string {
	t.Helper()
	hash, err := sources(fsys, root, "")
	if err != nil {
		t.Fatalf("sources of %s: %v", name, err)
	}
	final := filepath.Join(cache(t), name+"-"+hash)
	if _, err := os.Stat(final); err == nil {
		return final
	}
	work, err := os.MkdirTemp(cache(t), name+"-")
	if err != nil {
		t.Fatalf("folder to build %s: %v", name, err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if _, err := sources(fsys, root, work); err != nil {
		t.Fatalf("sources of %s: %v", name, err)
	}
	cmd := exec.Command("/bin/sh", "-c", strings.Join(command, " "))
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s with %q: %v\n%s", name, cmd, err, out)
	}
	// The program may have to run as another user.
	if err := os.Chmod(work, 0o755); err != nil {
		t.Fatalf("folder of %s: %v", name, err)
	}
	if err := os.Rename(work, final); err != nil {
		if _, other := os.Stat(final); other != nil {
			t.Fatalf("keep %s: %v", name, err)
		}
	}
	return final
}

// SubjectPath builds subject and returns its path. Its features are described
// in test/programs/src/subject.h; without arguments it lists them.
func SubjectPath(t T) string {
	t.Helper()
	require.Program(t, "gcc")
	return filepath.Join(build(t, "subject", programs.Subject, "src", "gcc -O2 -Wall -Wextra -pthread -o subject *.c"), "subject")
}
