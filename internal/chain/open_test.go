package chain

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stasis/internal/image"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// write makes a checkpoint of one page in dir.
func write(t *testing.T, dir string, id byte) {
	t.Helper()
	target, err := store.CreateFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := writer.New(target, writer.Options{Shards: 1, ID: [16]byte{id}})
	if err != nil {
		t.Fatal(err)
	}
	page := make([]byte, image.PageSize)
	page[7] = id
	if err := w.PutPages(0, image.PageBlock{PID: 1, Extents: []image.Extent{{Addr: 0x1000, Pages: 1}}, Data: page}); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(map[int][]image.Range{1: {{Start: 0x1000, End: 0x2000}}}, &image.Manifest{Kind: image.KindFull}); err != nil {
		t.Fatal(err)
	}
}

func idHex(id byte) string { return hex.EncodeToString(append([]byte{id}, make([]byte, 15)...)) }

func TestResolverFindsByID(t *testing.T) {
	root, other := t.TempDir(), t.TempDir()
	write(t, filepath.Join(root, "one"), 1)
	write(t, filepath.Join(root, "two"), 2)
	write(t, filepath.Join(other, "three"), 3)
	write(t, filepath.Join(root, "removed"), 4)
	if err := os.Rename(filepath.Join(root, "removed", store.ManifestName), filepath.Join(root, "removed", store.RemovedName)); err != nil {
		t.Fatal(err)
	}
	child := filepath.Join(root, "child") // need not be there
	m := &image.Manifest{Origins: []image.Origin{
		{ID: idHex(1), Path: "../one"},
		{ID: idHex(2), Path: "../one"}, // another checkpoint took the place
		{ID: idHex(3), Path: "../three"},
		{ID: idHex(4), Path: filepath.Join(root, "removed")},
		{ID: idHex(5), Path: "../five"},
	}}
	resolve := Resolver(m, child, other)
	for id, want := range map[byte]string{1: "one", 2: "two", 3: "three", 4: "removed"} {
		src, err := resolve([16]byte{id})
		if err != nil {
			t.Errorf("%d: %v", id, err)
			continue
		}
		if got := filepath.Base(src.Name()); got != want {
			t.Errorf("ancestor %d was found in %s, and is in %s", id, got, want)
		}
	}
	src, err := resolve([16]byte{5})
	var lost *MissingError
	if src != nil || !errors.As(err, &lost) {
		t.Fatalf("an ancestor that is not there: %v, %v", src, err)
	}
	for _, part := range []string{idHex(5), filepath.Join(root, "five"), "no checkpoint there", "in " + root, "in " + other, child} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	if list := Missing(m, child, other); len(list) != 1 || list[0].ID != idHex(5) {
		t.Errorf("missing: %v", list)
	}
	if list := Missing(m, child); len(list) != 2 { // without the folder of the third
		t.Errorf("missing without %s: %v", other, list)
	}
	if _, err := Resolver(m, child)([16]byte{2}); err != nil {
		t.Errorf("beside the child: %v", err)
	}
}

func TestResolverNamesTheImpostor(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "one"), 1)
	m := &image.Manifest{Origins: []image.Origin{{ID: idHex(9), Path: "../one"}}}
	_, err := Resolver(m, filepath.Join(root, "child"))([16]byte{9})
	if err == nil || !strings.Contains(err.Error(), "another checkpoint there, "+idHex(1)) {
		t.Errorf("another checkpoint in the ancestor's place: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	root := t.TempDir()
	one := filepath.Join(root, "one")
	write(t, one, 1)
	c, err := Open(one)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	text, err := json.Marshal(dedupMark{Top: idHex(2), Path: "/c/two", When: time.Unix(0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	// A mark that was cut off counts as well.
	for _, content := range [][]byte{text, text[:10], nil} {
		if err := os.WriteFile(filepath.Join(one, dedupedName), content, 0o600); err != nil {
			t.Fatal(err)
		}
		var deduped *DedupedError
		if _, err := Open(one); !errors.As(err, &deduped) {
			t.Errorf("with the mark %q: %v", content, err)
		}
	}
	if err := os.Remove(filepath.Join(one, dedupedName)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(one, store.ManifestName), filepath.Join(one, store.RemovedName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(one); !errors.Is(err, store.ErrNoCheckpoint) || !strings.Contains(err.Error(), "removed") {
		t.Errorf("a checkpoint that was removed: %v", err)
	}
	if _, err := store.CreateFolder(one); !errors.Is(err, store.ErrExists) {
		t.Errorf("a dump into what is left of one: %v", err)
	}
}
