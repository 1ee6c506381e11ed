package store_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"stasis/internal/store"
)

// What is limited takes its time, arrives whole, and can still be read back before it is published.
func TestLimit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	folder, err := store.CreateFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	const rate = 1 << 20
	w, err := store.Limit(t.Context(), folder, rate).Create("img-0")
	if err != nil {
		t.Fatal(err)
	}
	data := append([]byte(store.Magic), bytes.Repeat([]byte("0123456789abcdef"), rate/64)...)
	begun := time.Now()
	if n, err := w.Write(data); n != len(data) || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(data), err)
	}
	// A quarter of a second's worth, of which a tenth may come at once.
	if took := time.Since(begun); took < 100*time.Millisecond {
		t.Errorf("%d bytes at %d bytes a second took %v", len(data), rate, took)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	again := make([]byte, len(data))
	if _, err := w.(store.Rereader).ReadAt(again, 0); err != nil || !bytes.Equal(again, data) {
		t.Errorf("read back: %v", err)
	}
	if err := folder.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the aborted folder is still there")
	}
}

// A wait ends with its context, however slow the rate.
func TestLimitEnds(t *testing.T) {
	folder, err := store.CreateFolder(filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Abort()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	w, err := store.Limit(ctx, folder, 1).Create("img-0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(make([]byte, 1<<20))
	if err == nil {
		t.Fatal("a mebibyte at one byte a second was written")
	}
	if ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Logf("refused before the deadline: %v", err)
	}
}
