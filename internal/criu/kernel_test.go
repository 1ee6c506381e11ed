package criu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/rpc"

	"stasis/internal/require"
)

// useKernelDir gives this test a folder of its own for what CRIU finds out.
func useKernelDir(t *testing.T) string {
	t.Helper()
	before := kernelDir
	kernelDir = t.TempDir()
	t.Cleanup(func() { kernelDir = before })
	return kernelDir
}

// askKernel lets CRIU find out what the kernel can do.
func askKernel(t *testing.T, b *Binary) {
	t.Helper()
	session, err := b.Start(Request{Opts: &rpc.CriuOpts{}})
	if err != nil {
		t.Fatal(err)
	}
	kind, yes := rpc.CriuReqType_FEATURE_CHECK, true
	if err := session.send(&rpc.CriuReq{Type: &kind, Features: &rpc.CriuFeatures{MemTrack: &yes}}); err != nil {
		t.Fatal(err)
	}
	if _, err := session.receive(); err != nil {
		t.Error(err)
	}
	if err := session.Close(); err != nil {
		t.Error(err)
	}
}

// TestWhatCRIUFindsOutIsKept sees that CRIU writes the file that Stasis has
// chosen, believes it the next time, and writes a damaged one anew.
func TestWhatCRIUFindsOutIsKept(t *testing.T) {
	require.Root(t)
	b, err := Find(t.Context(), require.CRIU(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := useKernelDir(t)
	askKernel(t, b)
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(made) != 1 || made[0] != b.kernelFile() {
		t.Fatalf("after the first session there are %v, %v; want %s", made, err, b.kernelFile())
	}
	first, err := os.Stat(made[0])
	if err != nil {
		t.Fatal(err)
	}
	askKernel(t, b)
	if again, err := os.Stat(made[0]); err != nil || !os.SameFile(first, again) {
		t.Errorf("the second session wrote it anew: %v", err)
	}
	if err := os.WriteFile(made[0], []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	askKernel(t, b)
	if again, err := os.Stat(made[0]); err != nil || again.Size() != first.Size() {
		t.Errorf("a damaged file stayed: %+v, %v", again, err)
	}
	Forget()
	if _, err := os.Stat(made[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was not forgotten: %v", err)
	}
}

// TestOnlyOwnFilesAreBelieved changes who could have written the answers.
func TestOnlyOwnFilesAreBelieved(t *testing.T) {
	require.Root(t)
	dir, b := useKernelDir(t), &Binary{Path: "/bin/sh", Version: Minimum, Dynamic: true}
	old := filepath.Join(dir, kernelPrefix+"0-another-boot-1")
	if err := os.WriteFile(old, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	path := b.kernelFile()
	if path == "" || !strings.HasPrefix(path, dir) {
		t.Fatalf("the file is %q", path)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("that of another boot is still there: %v", err)
	}
	if other := (&Binary{Path: "/bin/sh", Version: Minimum + 1, Dynamic: true}).kernelFile(); other == path {
		t.Error("another version has the same file")
	}
	for name, spoil := range map[string]func() error{
		"written by a group":     func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o660)) },
		"of another user":        func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, 65534, -1)) },
		"a link":                 func() error { return os.Symlink("/etc/hostname", path) },
		"in a folder of anybody": func() error { return os.Chmod(dir, 0o777) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if got := b.kernelFile(); got != "" {
			t.Errorf("%s: %s is believed", name, got)
		}
		if err := errors.Join(os.RemoveAll(path), os.Chmod(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
}
