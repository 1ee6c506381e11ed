package catalog_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"stasis/internal/catalog"
	"stasis/internal/catalog/catalogtest"
)

// seen is what somebody who keeps an answer for as long as its generation lasts believes.
type seen struct {
	c          *catalog.Catalog
	generation uint64
	valid      bool
	ids        map[string]string
}

// now gives the ids of the checkpoints by their folders, from what was kept where that still holds.
func (s *seen) now() map[string]string {
	list, generation := s.c.Look()
	if s.valid && s.generation == generation {
		return s.ids
	}
	s.generation, s.valid, s.ids = generation, s.c.Watch(list), make(map[string]string)
	for _, e := range list {
		if e = s.c.Fresh(e); e != nil {
			s.ids[e.Dir] = e.Manifest.ID
		}
	}
	return s.ids
}

// Whatever happens to the folders is seen by the next look, also by somebody who keeps what he has seen: there is no moment at which an answer is
// old. The folders are changed at random, and looked at after each change by a catalog that is asked again and again, by one that cannot watch
// anything, and by one that knows nothing yet.
func TestNothingIsMissed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "checkpoints")
	watching, looking := catalog.New(dir), catalog.New(dir)
	t.Cleanup(watching.Close)
	looking.Close()
	kept, other := &seen{c: watching}, &seen{c: looking}
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // no secret
	homes := []string{"", "jobs/a", "jobs/b", "users/1000", "users/1000/jobs/a"}
	somewhere := func() string {
		return filepath.Join(dir, homes[random.IntN(len(homes))], fmt.Sprint("c", random.IntN(4)))
	}
	at := time.Now().Add(-24 * time.Hour)
	var hits int
	for step := range 250 {
		var did string
		switch path := somewhere(); random.IntN(8) {
		case 0, 1, 2:
			did = "make " + path
			at = at.Add(time.Second)
			catalogtest.Make(t, path, catalogtest.Options{Created: at})
		case 3:
			did = "remove " + path
			_ = os.RemoveAll(path)
		case 4:
			did = "remove the manifest in " + path
			_ = os.Remove(filepath.Join(path, "manifest.json"))
		case 5:
			to := somewhere()
			did = "rename " + path + " to " + to
			_ = os.MkdirAll(filepath.Dir(to), 0o700)
			_ = os.Rename(path, to)
		case 6:
			from, to := filepath.Join(dir, homes[1+random.IntN(2)]), filepath.Join(dir, homes[1+random.IntN(2)])
			did = "rename a job's folder"
			_ = os.Rename(from, to)
		case 7:
			did = "remove a folder of folders, or all"
			if random.IntN(4) == 0 {
				_ = os.RemoveAll(filepath.Join(dir, homes[random.IntN(len(homes))]))
			}
		}
		fresh := catalog.New(dir)
		want := (&seen{c: fresh}).now()
		fresh.Close()
		for range 2 {
			before := kept.generation
			if got := kept.now(); !same(got, want) {
				t.Fatalf("step %d, %s: there is\n%v, and seen is\n%v", step, did, want, got)
			}
			if kept.valid && kept.generation == before {
				hits++
			}
		}
		if got := other.now(); !same(got, want) {
			t.Fatalf("step %d, %s: there is\n%v, and without watching seen is\n%v", step, did, want, got)
		}
	}
	t.Logf("%d times what was kept was good", hits)
}

func same(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for path, id := range a {
		if b[path] != id {
			return false
		}
	}
	return true
}

// More checkpoints than are watched at once are seen as well.
func TestMoreThanIsWatched(t *testing.T) {
	dir := t.TempDir()
	catalogtest.Many(t, dir, 1100)
	c := catalog.New(dir)
	t.Cleanup(c.Close)
	list, first := c.Look()
	for part := range slices.Chunk(list, 100) {
		c.Watch(part)
	}
	if c.Watch(list) {
		t.Error("all are watched at once")
	}
	list, _ = c.Look()
	gone := list[len(list)-1]
	if err := os.Remove(filepath.Join(gone.Dir, "manifest.json")); err != nil {
		t.Fatal(err)
	}
	if _, now := c.Look(); now == first {
		t.Error("what was forgotten still counts")
	}
	if c.Fresh(gone) != nil {
		t.Error("it is still there")
	}
}
