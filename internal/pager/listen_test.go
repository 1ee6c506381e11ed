//go:build linux && (amd64 || arm64)

package pager

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stasis/internal/image"
)

func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds what the first left
		p, err := Listen(dir, newPattern(1, 1), Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
	}
	if _, err := Listen(filepath.Join(dir, "not there"), newPattern(1, 1), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("Listen = %v", err)
	}
}

// CRIU can hand over a process, and that can touch its memory, before the index is read.
func TestFaultsWaitForTheIndex(t *testing.T) {
	src := newPattern(64, 16)
	read := make(chan struct{})
	h := openEarly(t, func() (Source, error) { <-read; return src, nil }, src.pages, Options{Lazy: true})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.pager.Ready(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("Ready before the index was read = %v", err)
	}
	if done, total := h.pager.Progress(); done != 0 || total != 0 {
		t.Fatalf("%d of %d bytes before the index was read", done, total)
	}
	filled := h.startFill()
	close(read)
	h.ask("s")
	h.ask("v 0 64 0")
	h.wantFilled(filled)
	if err := h.pager.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAnIndexThatCannotBeRead(t *testing.T) {
	damage := &image.DamageError{Checkpoint: "some", Why: "for the test"}
	failed := make(chan error, 1)
	p, err := ListenEarly(t.TempDir(), func() (Source, error) { return nil, damage }, Options{OnError: func(err error) { failed <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := receive(t, failed); !errors.Is(err, damage) {
		t.Fatalf("OnError was told %v", err)
	}
	for _, err := range []error{p.Ready(t.Context()), p.Fill(t.Context()), p.Err()} {
		if !errors.Is(err, damage) {
			t.Errorf("%v instead of the damage", err)
		}
	}
}

func TestDescriptorsAreShown(t *testing.T) {
	var seen int
	src := newPattern(64, 16)
	h := open(t, src, src.pages, Options{Lazy: true, OnDescriptor: func(int) error { seen++; return nil }})
	h.ask("s")
	h.ask("e")
	h.fill()
	if seen != 2 {
		t.Errorf("%d descriptors, want 2", seen)
	}
}
