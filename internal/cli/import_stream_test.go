package cli

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// streamFile writes a checkpoint as one stream.
func streamFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "job.stream")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b := newBench(t)
	b.dumpInto()
	b.app.out = file
	b.says(exitOK, []string{"dump", "process", "4711", "--dir", "-"}, "to standard output")
	return path
}

func TestImportOfAStream(t *testing.T) {
	stream := streamFile(t)
	b := newBench(t)
	b.shows([]string{"import", stream, "--name", "job"}, "imported redis-server (4711", filepath.Join(b.dir, "job"))
	b.shows([]string{"verify", "job"}, "is whole")

	file, err := os.Open(stream)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b.in = file
	var report importReport
	b.says(exitOK, []string{"import", "-", "-o", "json"})
	if b.document(&report); report.PID != 4711 || !hasManifest(report.Dir) {
		t.Errorf("%+v", report)
	}
	b.says(exitConflict, []string{"import", stream, "--name", "job"}, "exists")
	b.says(exitInput, []string{"import", stream, "--name", "two", "--compression", "zstd"}, "--compression", "stasis compact")
}

func TestImportOfAStreamThatIsNone(t *testing.T) {
	b := newBench(t)
	whole, err := os.ReadFile(streamFile(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ text, says string }{
		{"", "nothing came"},
		{"ssh: connect to host: no route", "not in the form"},
		{string(whole[:len(whole)/2]), "ended before"},
	} {
		file, err := os.CreateTemp(t.TempDir(), "stream")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		if _, err := io.WriteString(file, test.text); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"import", "-", "--name", "bad"}, {"restore", "process", "--path", "-"}} {
			if _, err := file.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			b.in = file
			b.says(exitDamaged, args, test.says)
		}
		if _, err := os.Stat(filepath.Join(b.dir, "bad")); !os.IsNotExist(err) {
			t.Errorf("%s: it left a folder (%v)", test.says, err)
		}
	}
}

// TestWhatIsNoCheckpointYet: whoever names a stream, or a folder of CRIU's, is told the command for it.
func TestWhatIsNoCheckpointYet(t *testing.T) {
	b := newBench(t)
	stream, images := streamFile(t), criuFolder(t)
	for _, command := range [][]string{{"inspect"}, {"verify"}, {"restore", "process", "--path"}, {"rm"}} {
		b.says(exitInput, append(command, stream), "as one stream", "stasis import "+stream)
		b.says(exitInput, append(command, images), "CRIU's own images", "stasis import "+images)
	}
	b.says(exitInput, []string{"inspect", "-"}, "stasis import -")

	archive := t.TempDir()
	if err := os.Rename(images, filepath.Join(archive, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	b.says(exitInput, []string{"import", archive}, "unpacked archive", filepath.Join(archive, "checkpoint"))
}

func TestVerbosityIsNoProcess(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"dump process --log-level 4 12", "dump process --log-level=4 12"},
		{"dump process 12 --log-level", "dump process 12 --log-level"},
		{"dump process --log-level x", "dump process --log-level x"},
		{"dump -v4 -t 12", "dump -v=4 -t 12"},
		{"run -v2 -- job --log-level 4 -v4", "run -v=2 -- job --log-level 4 -v4"},
	} {
		if got := strings.Join(criuVerbosity(strings.Fields(test.args)), " "); got != test.want {
			t.Errorf("%s: %s, want %s", test.args, got, test.want)
		}
	}
}

// TestEveryCommandHasAGroup: one without would stand by itself at the end of the help.
func TestEveryCommandHasAGroup(t *testing.T) {
	for _, cmd := range newBench(t).root().Commands() {
		if cmd.GroupID == "" {
			t.Errorf("%s is in no group", cmd.Name())
		}
	}
}
