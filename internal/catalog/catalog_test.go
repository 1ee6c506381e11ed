package catalog_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stasis/internal/catalog"
	"stasis/internal/catalog/catalogtest"
)

func names(list []*catalog.Entry) string {
	var all []string
	for _, e := range list {
		all = append(all, fmt.Sprintf("%s/%d/%s", filepath.Base(e.Dir), e.Owner, e.Job))
	}
	return strings.Join(all, " ")
}

// What comes and goes is seen at once, wherever it lies.
func TestCatalog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "checkpoints")
	c := catalog.New(dir)
	t.Cleanup(c.Close)
	if got := c.List(); len(got) != 0 {
		t.Errorf("of a folder that is not there: %v", names(got))
	}
	at := time.Now().Add(-time.Hour)
	add := func(path string) string {
		at = at.Add(time.Second)
		return catalogtest.Make(t, filepath.Join(dir, path), catalogtest.Options{Created: at})
	}
	id := add("one")
	add("jobs/web/a")
	add("users/1000/mine")
	add("users/1000/jobs/web/a")
	if got := names(c.List()); got != "a/1000/web mine/1000/ a/0/web one/0/" {
		t.Errorf("the list is %s", got)
	}
	add("users/1000/jobs/web/b")
	add("two")
	if got := names(c.List()); got != "two/0/ b/1000/web a/1000/web mine/1000/ a/0/web one/0/" {
		t.Errorf("with more, the list is %s", got)
	}
	for _, gone := range []string{"users/1000/jobs/web", "two"} {
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(c.List()); got != "mine/1000/ a/0/web one/0/" {
		t.Errorf("with less, the list is %s", got)
	}
	for ref, uid := range map[string]uint32{"one": 0, id: 0, id[:8]: 0, filepath.Join(dir, "one"): 0, "mine": 1000, filepath.Join(dir, "users/1000/mine"): 0, "a": 0} {
		if _, err := c.Find(uid, ref); err != nil {
			t.Errorf("user %d, %s: %v", uid, ref, err)
		}
	}
	for ref, uid := range map[string]uint32{"mine": 0, "one": 1000, id: 1000, id[:7]: 0, "": 0, "users": 0, "users/1000/mine": 0, dir: 0, "/": 0, filepath.Join(dir, "one") + " ": 1000} {
		if _, err := c.Find(uid, ref); !errors.Is(err, catalog.ErrUnknown) {
			t.Errorf("user %d, %q: %v", uid, ref, err)
		}
	}
	// A checkpoint that is half written, or damaged, is none; it is one as soon as it is whole.
	half := filepath.Join(dir, "half")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "manifest.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := len(c.List()); got != 3 {
			t.Errorf("with half a checkpoint there are %d", got)
		}
	}
	add("half")
	if got := names(c.List()); !strings.HasPrefix(got, "half/0/ ") {
		t.Errorf("when it is whole, the list is %s", got)
	}
	// One whose manifest was replaced is known by the new one.
	old := c.List()[0]
	again := add("half")
	if e := c.Fresh(old); e == nil || e.Manifest.ID != again {
		t.Errorf("replaced: %v", e)
	}
	whole := c.List()[0]
	if err := os.Remove(filepath.Join(half, "manifest.json")); err != nil {
		t.Fatal(err)
	}
	if e := c.Fresh(whole); e != nil {
		t.Errorf("without its manifest it is still there")
	}
}
