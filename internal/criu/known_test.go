package criu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestAnAnswerHoldsAsLongAsTheFile replaces a CRIU by another version at the
// same path and of the same size.
func TestAnAnswerHoldsAsLongAsTheFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("missing root: answers are kept in " + knownDir)
	}
	path := filepath.Join(t.TempDir(), "criu")
	asked := filepath.Join(t.TempDir(), "asked")
	install := func(version string) {
		t.Helper()
		script := fmt.Sprintf("#!/bin/sh\necho x >> %s\necho Version: %s\n", asked, version)
		next := path + ".new"
		if err := os.WriteFile(next, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	times := func() int64 {
		info, err := os.Stat(asked)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size() / 2
	}
	for i, version := range []string{"4.2.1", "4.3.0", "4.1.9"} {
		install(version)
		for range 3 {
			b, err := Find(context.Background(), path)
			if version == "4.1.9" {
				if err == nil {
					t.Error("an old version is taken")
				}
				continue
			}
			if err != nil || b.VersionString() != version {
				t.Fatalf("found %v, %v, want %s", b, err, version)
			}
		}
		if version != "4.1.9" && times() != int64(i+1) {
			t.Errorf("version %s: CRIU was asked %d times, want %d", version, times(), i+1)
		}
	}
}
