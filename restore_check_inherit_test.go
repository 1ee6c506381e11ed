package stasis

import (
	"os"
	"path/filepath"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
)

// TestInheritedForNothing finds descriptors for what the tree does not have, and lets those pass that it has, or may have.
func TestInheritedForNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "one")
	target, err := store.CreateFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := writer.New(target, writer.Options{Shards: 1, ID: [16]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	m := treeOf(4711)
	m.RootPID, m.Kind = 4711, image.KindFull
	m.Options = map[string]string{optionsOfCRIU: `{"external": ["pipe:[79]"]}`} // a console that the tree has closed
	m.Processes[0].Files = []image.OpenFile{{FD: 1, Path: "pipe:[77]"}, {FD: 2, Path: "/var/log/job.log (deleted)"}}
	if err := w.Finish(nil, m); err != nil {
		t.Fatal(err)
	}
	folder, err := store.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := reader.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, test := range []struct {
		key  string
		says []string // nil: it passes
	}{
		{"pipe:[77]", nil},
		{"var/log/job.log", nil},
		{"/var/log/job.log", nil},
		{"pipe:[79]", nil},
		{"tty[8801:1]", nil},
		{"socket:[123]", nil},
		{"blue", nil},
		{"green", nil},
		{"pipe:[78]", []string{"no such pipe", "pipe:[77]", "--force"}},
		{"nosuch", []string{"neither a file nor an external resource", "stasis inspect"}},
	} {
		r := &restore{checkpoint: c, criuOpts: CRIUOptions{
			External: []string{"net[4026531840]:blue"}, Raw: []string{"external net[4026531841]:green"},
			InheritFDs: map[string]*os.File{test.key: os.Stdin},
		}}
		found := &conflicts{}
		if err := r.checkInherited(found, m); err != nil {
			t.Fatal(err)
		}
		if test.says != nil {
			found.expect(t, test.says...)
		} else if len(found.errors) > 0 {
			t.Errorf("%s: %v", test.key, found.errors)
		}
	}
}

// TestRootOfADumpIsThere says early what CRIU would not say at all.
func TestRootOfADumpIsThere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for root, right := range map[string]bool{"": true, t.TempDir(): true, file: false, file + "-none": false} {
		o := DumpOptions{PID: 4711, Dir: "x", CRIU: CRIUOptions{Root: root}}
		if err := o.complete(); (err == nil) != right {
			t.Errorf("root %q: %v", root, err)
		}
	}
}
