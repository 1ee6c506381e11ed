package faults

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"stasis"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/store"
	"stasis/internal/testkit"
)

// stored is a checkpoint in memory, to be damaged in copies.
type stored map[string][]byte

func readCheckpoint(t *testing.T, dir string) stored {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := make(stored)
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// write makes the folder of a copy that was changed.
func (c stored) write(t *testing.T, dir string, change func(stored)) {
	t.Helper()
	files := make(stored)
	for name, data := range c {
		files[name] = bytes.Clone(data)
	}
	change(files)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// forge changes the manifest and makes its checksum right again.
func (c stored) forge(t *testing.T, from, to string) {
	t.Helper()
	text := c[store.ManifestName]
	changed := regexp.MustCompile(from).ReplaceAll(text, []byte(to))
	if bytes.Equal(changed, text) {
		t.Fatalf("the manifest has nothing like %s", from)
	}
	sum := regexp.MustCompile(`("checksum": ")[0-9a-f]{16}`)
	blank := sum.ReplaceAll(changed, []byte("${1}0000000000000000"))
	c[store.ManifestName] = sum.ReplaceAll(blank, fmt.Appendf(nil, "${1}%016x", xxh3.Hash(blank)))
}

// damage is one way to spoil a checkpoint.
type damage struct {
	name   string
	change func(stored)
	kind   string
	says   []string
}

func flip(file string, at int64) func(stored) {
	return func(c stored) {
		if at < 0 {
			at += int64(len(c[file]))
		}
		c[file][at] ^= 1 << (at % 8)
	}
}

// flips are one flipped bit in each part of a shard: of header, footer and
// index, and of blocks' headers and data.
func flips(t *testing.T, dir string) []damage {
	t.Helper()
	src, err := store.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := reader.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var list []damage
	add := func(part, file string, at int64) {
		list = append(list, damage{"bit/" + file + "/" + part, flip(file, at), "damaged", []string{file, "use a good copy"}})
	}
	for shard := range c.Manifest().Shards {
		file := image.ShardName(shard)
		add("header", file, 9)
		add("index", file, -100)
		add("footer", file, -20)
		// The last one with memory: by then much is in place.
		last := -1
		for i := range c.Blocks() {
			if c.Block(i).Shard == shard {
				last = i
			}
		}
		if last < 0 {
			t.Fatalf("%s has no memory", file)
		}
		b := c.Block(last)
		add("block-header", file, b.Offset+10)
		add("block-data", file, b.Offset+64+int64(b.Stored)/2)
	}
	list = append(list, damage{"bit/manifest", flip(store.ManifestName, 200), "damaged", []string{"manifest.json", "use a good copy"}})
	return list
}

// TestDamagedCheckpoint: a restore of any of them fails, says what it is, and
// leaves no process.
func TestDamagedCheckpoint(t *testing.T) {
	s := newScene(t)
	s.dump(stasis.AfterRun)
	other := readCheckpoint(t, s.dir)
	s.newDir()
	rewind := s.p.Snapshot()
	s.dump(stasis.AfterKill)
	s.gone()
	good, dir := readCheckpoint(t, s.dir), s.dir

	list := append(flips(t, dir), []damage{
		{"truncated", func(c stored) { c["img-1"] = c["img-1"][:len(c["img-1"])/2] }, "damaged", []string{"img-1", "use a good copy"}},
		{"empty", func(c stored) { c["img-0"] = nil }, "damaged", []string{"img-0", "use a good copy"}},
		{"swapped", func(c stored) { c["img-0"], c["img-1"] = c["img-1"], c["img-0"] }, "damaged", []string{"under a wrong name"}},
		{"missing", func(c stored) { delete(c, "img-1") }, "damaged", []string{"img-1", "use a good copy"}},
		{"other checkpoint's", func(c stored) { c["img-1"] = other["img-1"] }, "damaged", []string{"img-1", "from another checkpoint"}},
		{"no manifest", func(c stored) { delete(c, store.ManifestName) }, "input", []string{"has no manifest.json"}},
		{"newer format", func(c stored) { c.forge(t, `"format": 1,`, `"format": 9,`) }, "damaged", []string{"format 9", "newer"}},
		{"other page size", func(c stored) { c.forge(t, `"page_size": 4096`, `"page_size": 65536`) }, "damaged", []string{"65536", "4096"}},
		{"other kind of machine", func(c stored) { c.forge(t, `"arch": "[^"]*"`, `"arch": "riscv64"`) }, "conflict", []string{"riscv64", "restore it on a machine of its kind"}},
		{"other CPU", func(c stored) { c.forge(t, `"cpu_features": \[`, `"cpu_features": ["avx9000",`) }, "conflict", []string{"lacks avx9000", "restore it on a CPU that has"}},
	}...)
	for _, d := range list {
		t.Run(d.name, func(t *testing.T) {
			s := s.in(t)
			s.newDir()
			good.write(t, s.dir, d.change)
			for _, lazy := range []bool{false, true} {
				if lazy && !strings.Contains(d.name, "block") {
					continue // found before memory matters
				}
				w := start(t, plan{Restore: true, Dir: s.dir, Lazy: lazy})
				o := w.end()
				if o.Kind != d.kind || o.Err == "" {
					t.Errorf("lazy=%t: an error of kind %q, should be %q: %s", lazy, o.Kind, d.kind, o.Err)
				}
				for _, part := range d.says {
					if !strings.Contains(o.Err, part) {
						t.Errorf("lazy=%t: the message does not say %q: %s", lazy, part, o.Err)
					}
				}
				s.gone()
				s.nothingLeft(w)
			}
		})
	}

	t.Run("other kernel", func(t *testing.T) {
		s := s.in(t)
		s.newDir()
		good.write(t, s.dir, func(c stored) { c.forge(t, `"kernel": "[^"]*"`, `"kernel": "5.0.1"`) })
		result, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: s.dir})
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(result.Warnings, "\n"); !strings.Contains(text, "made on Linux 5.0.1") {
			t.Errorf("the warnings do not name the kernel: %q", text)
		}
		s.look()
		s.unharmed()
		testkit.Kill(t, s.p.PID())
		rewind()
	})
	if !t.Failed() {
		s.dir = dir
		s.restore(false)
	}
}

// TestEveryPartMatters flips bits all over the shards: a restore succeeds only
// where verify finds nothing wrong, that is in blocks that later rounds have
// replaced.
func TestEveryPartMatters(t *testing.T) {
	s := newScene(t)
	rewind := s.p.Snapshot()
	s.dump(stasis.AfterKill)
	s.gone()
	good := readCheckpoint(t, s.dir)
	const places = 8
	for _, file := range []string{"img-0", "img-1"} {
		for n := range places {
			at := int64(len(good[file])) * int64(2*n+1) / (2 * places)
			t.Run(fmt.Sprintf("%s/%d", file, at), func(t *testing.T) {
				s := s.in(t)
				s.newDir()
				good.write(t, s.dir, flip(file, at))
				bad := verify(s.dir)
				_, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: s.dir})
				if (err == nil) != (bad == nil) {
					t.Errorf("verify says %v, and the restore %v", bad, err)
				}
				if err == nil {
					s.look()
					s.unharmed()
					testkit.Kill(t, s.p.PID())
					rewind()
				}
				s.gone()
			})
		}
	}
}

func verify(dir string) error {
	src, err := store.OpenFolder(dir)
	if err != nil {
		return err
	}
	c, err := reader.Open(src)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Verify(context(), 2, nil)
}
