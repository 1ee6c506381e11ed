package criu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stasis/internal/require"
)

func TestTryPreload(t *testing.T) {
	b, err := Find(t.Context(), require.CRIU(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.TryPreload(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTryPreloadNoticesThatNothingWasLoaded(t *testing.T) {
	script := filepath.Join(t.TempDir(), "criu")
	text := "#!/bin/sh\nunset LD_PRELOAD STASIS_BLIND_FD\nexec " + require.CRIU(t) + " \"$@\"\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := Find(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.TryPreload(t.Context()); err == nil || !strings.Contains(err.Error(), "runs without") {
		t.Errorf("%v, want that the library is missing", err)
	}
}

func TestTryPreloadOfSomethingElse(t *testing.T) {
	b := &Binary{Path: "/bin/false", Dynamic: true}
	if err := b.TryPreload(t.Context()); err == nil {
		t.Error("a program that ends at once counts as CRIU")
	}
}
