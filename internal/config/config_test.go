package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFile(t *testing.T) {
	want := *Default()
	want.Checkpoint.Stream, want.Checkpoint.Dir, want.Checkpoint.Compression, want.Checkpoint.Level = 4, "/srv/c", "zstd", 3
	same := func(a, b *Config) bool {
		x, y := *a, *b
		x.path, x.origins, y.path, y.origins = "", nil, "", nil
		return reflect.DeepEqual(x, y)
	}
	for name, text := range map[string]string{
		"yaml": "# ours\ncheckpoint:\n  stream: 4\n  dir: /srv/c/\n  compression: zstd\n  level: 3\n",
		"json": `{"checkpoint": {"stream": 4, "dir": "/srv/c", "compression": "zstd", "level": 3}}`,
	} {
		c, err := Load(write(t, text), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !same(c, &want) {
			t.Errorf("%s: got %+v", name, *c)
		}
	}
	for name, text := range map[string]string{"empty": "", "comments": "# nothing\n", "section": "checkpoint:\n  # stream: 4\n", "null": "checkpoint:\n  stream:\n"} {
		c, err := Load(write(t, text), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !same(c, Default()) {
			t.Errorf("%s: got %+v", name, *c)
		}
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "checkpoint: {stream: 4, compression: lz4}")
	other := write(t, "checkpoint: {stream: 5}")
	environ := []string{"HOME=/", PathVariable + "=" + file, "STASIS_CHECKPOINT_STREAM=7", "STASIS_SOCKET_DIR=/x", "STASIS_CHECKPOINTS=1"}

	c, err := Load("", environ)
	if err != nil {
		t.Fatal(err)
	}
	if c.Checkpoint.Stream != 7 || c.Checkpoint.Compression != "lz4" {
		t.Errorf("environment over file: %+v", *c)
	}
	if c, err = Load(other, environ[:2]); err != nil || c.Checkpoint.Stream != 5 || c.Checkpoint.Compression != "" {
		t.Errorf("--config over %s: %+v, %v", PathVariable, c, err)
	}
}

func TestBad(t *testing.T) {
	for _, test := range []struct {
		name, text string
		environ    []string
		says       []string
	}{
		{name: "unknown key", text: "checkpoint:\n  strem: 4", says: []string{"line 2", "unknown key checkpoint.strem", "checkpoint.stream?"}},
		{name: "unknown section", text: "checkpoints:\n  stream: 4", says: []string{"line 1", "did you mean checkpoint."}},
		{name: "without section", text: "compression: lz4", says: []string{"did you mean checkpoint.compression?"}},
		{name: "no number", text: "checkpoint: {stream: many}", says: []string{"checkpoint.stream", `"many"`, "1 to 1024"}},
		{name: "fraction", text: "checkpoint: {stream: 1.5}", says: []string{"1 to 1024"}},
		{name: "negative", text: "checkpoint: {stream: -1}", says: []string{"1 to 1024"}},
		{name: "truth", text: "checkpoint: {level: true}", says: []string{"whole number"}},
		{name: "codec", text: "checkpoint: {compression: lzma}", says: []string{"lzma", "zstd"}},
		{name: "relative", text: "checkpoint: {dir: here}", says: []string{"absolute"}},
		{name: "list", text: "checkpoint: {dir: [/a, /b]}", says: []string{"one value"}},
		{name: "not a mapping", text: "- checkpoint", says: []string{"expected keys"}},
		{name: "section with a value", text: "checkpoint: 4", says: []string{"stream: 4"}},
		{name: "twice", text: "checkpoint: {stream: 1}\ncheckpoint: {stream: 2}", says: []string{"line 2", "already in line 1"}},
		{name: "two documents", text: "checkpoint: {stream: 1}\n---\ncheckpoint: {stream: 2}", says: []string{"one document"}},
		{name: "no YAML", text: "checkpoint: {", says: []string{"neither YAML nor JSON"}},
		{name: "level alone", text: "checkpoint: {level: 3}", says: []string{"set both"}},
		{name: "level too high", text: "checkpoint: {compression: lz4, level: 22}", says: []string{"no level 22"}},
		{name: "page for the network", text: "daemon: {page: '0.0.0.0:7070'}", says: []string{"daemon.page", "no loopback address", "without encryption", "127.0.0.1:7070", "ssh -L"}},
		{name: "page for another interface", text: "daemon: {page: '192.168.1.2:7070'}", says: []string{"no loopback address"}},
		{name: "page for all", text: "daemon: {page: ':7070'}", says: []string{"as a number"}},
		{name: "page by name", text: "daemon: {page: 'localhost:7070'}", says: []string{"as a number", "127.0.0.1:7070"}},
		{name: "page without port", text: "daemon: {page: 127.0.0.1}", says: []string{"address with a port"}},
		{name: "page with a wrong port", text: "daemon: {page: '127.0.0.1:70700'}", says: []string{"up to 65535"}},
		{name: "variable", environ: []string{"STASIS_CHECKPOINT_STREAM=x"}, says: []string{"STASIS_CHECKPOINT_STREAM", `"x"`}},
		{name: "unknown variable", environ: []string{"STASIS_CHECKPOINT_STREAMS=1"}, says: []string{"did you mean STASIS_CHECKPOINT_STREAM?"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Load(write(t, test.text), test.environ)
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range test.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := Load(missing, nil); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("a file that was asked for is missing: %v", err)
	}
	if _, err := Load("", []string{PathVariable + "=" + missing}); err == nil {
		t.Errorf("a file that %s names is missing: no error", PathVariable)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("checkpoint:\n  stream: 4\n"))
	f.Add([]byte(`{"checkpoint": {"dir": "/x", "level": null}}`))
	f.Add([]byte("a: &a\n  b: *a\n"))
	f.Add([]byte("? [x]\n: y\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := Default()
		if err := c.parse("fuzz", text); err == nil && (c.Checkpoint.Stream < 0 || c.Checkpoint.Dir == "") {
			t.Errorf("accepted %+v", *c)
		}
	})
}
