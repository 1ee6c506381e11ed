package reader_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/imagetest"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// TestAncestorsAreMapped reads a chain on disk: of the ancestors' shards no descriptor is kept, and the end of one that becomes
// shorter is damage of that ancestor.
func TestAncestorsAreMapped(t *testing.T) {
	dir := t.TempDir()
	path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("c%d", i)) }
	resolve := func(id [16]byte) (store.Source, error) { return store.OpenFolder(path(int(id[0]) - 1)) }
	var parent *reader.Checkpoint
	for i := range 2 {
		target, err := store.CreateFolder(path(i))
		if err != nil {
			t.Fatal(err)
		}
		w, err := writer.New(target, writer.Options{Shards: 1, ID: [16]byte{byte(i + 1)}, Parent: parent, ParentPath: "../c0"})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			imagetest.Put(t, w, 0, 7, imagetest.Tagged(1, 64), image.Extent{Addr: 0x100000, Pages: 64})
			imagetest.PutFile(t, w, "core-7.img", imagetest.Tagged(5, 10))
		}
		imagetest.Finish(t, w, map[int][]image.Range{7: {imagetest.PagesOf(0x100000, 64)}})
		src, err := store.OpenFolder(path(i))
		if err != nil {
			t.Fatal(err)
		}
		if parent, err = reader.OpenChain(src, resolve); err != nil {
			t.Fatal(err)
		}
		c := parent
		t.Cleanup(func() { _ = c.Close() })
	}
	var b reader.Buffer
	if _, err := parent.ReadBlock(0, &b); err != nil {
		t.Fatal(err)
	}
	// Small ones are kept open: this one is made to look large.
	if there, mapped, _ := reader.AncestorFile(parent, 1, 0); !there || mapped {
		t.Fatalf("the ancestor's small shard is open: %v, mapped: %v", there, mapped)
	}
	if err := reader.MapAncestor(parent, 1, 0); err != nil {
		t.Fatal(err)
	}
	if there, mapped, open := reader.AncestorFile(parent, 1, 0); !there || !mapped || open {
		t.Fatalf("the ancestor's shard is there: %v, mapped: %v, open: %v", there, mapped, open)
	}
	if _, err := parent.ReadPayload(&parent.BlockTable[0], &b, false); err != nil || !bytes.Equal(reader.StoredIn(&b)[:image.MaxBlock], imagetest.Tagged(1, 64)) {
		t.Errorf("it was read without the mapping: %v", err)
	}
	if err := os.Truncate(filepath.Join(path(0), "img-0"), 8192); err != nil {
		t.Fatal(err)
	}
	for _, mapped := range []bool{true, false} {
		_, err := parent.ReadPayload(&parent.BlockTable[0], new(reader.Buffer), mapped)
		imagetest.DamageIn(t, err, "img-0", 1<<20, "truncation")
		if !strings.Contains(err.Error(), "../c0") {
			t.Errorf("the error does not name the ancestor: %v", err)
		}
	}
}
