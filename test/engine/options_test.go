package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/require"
	"stasis/internal/subject"
)

// TestOptionsThatCRIUDoesNotTake: the message names them, and they are the
// caller's mistake, not the process'.
func TestOptionsThatCRIUDoesNotTake(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	script := filepath.Join(t.TempDir(), "fails")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := subject.Start(t, "large")
	s.Hear()
	for _, test := range []struct {
		name string
		criu stasis.CRIUOptions
		kind error
		says []string
	}{
		{"unknown option", stasis.CRIUOptions{Raw: []string{"no-such-option 7"}}, stasis.ErrInput, []string{"--criu-opt", "no-such-option 7"}},
		{"resource without a kind", stasis.CRIUOptions{External: []string{"data"}}, stasis.ErrInput, []string{`--external "data"`, "KIND[KEY]"}},
		{"failing script", stasis.CRIUOptions{ActionScript: script}, stasis.ErrProcess, []string{"action script failed", script}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "checkpoint")
			_, err := stasis.Dump(t.Context(), stasis.DumpOptions{PID: s.PID, Dir: dir, CRIU: test.criu})
			if !errors.Is(err, test.kind) {
				t.Errorf("%v; want that it is %v", err, test.kind)
			}
			for _, part := range test.says {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%v does not say %s", err, part)
				}
			}
			if _, err := os.Stat(dir); !errors.Is(err, unix.ENOENT) {
				t.Errorf("the dump left a folder (%v)", err)
			}
			if answer := s.Ask("there?"); answer != "done" {
				t.Errorf("the process says %q", answer)
			}
		})
	}
}
