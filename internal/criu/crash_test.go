package criu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestHowKilled(t *testing.T) {
	log := filepath.Join(t.TempDir(), "dump.log")
	if err := os.WriteFile(log, []byte("(00.001) first\n(00.002) BUG at criu/mem.c:42\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		signal string
		says   []string
		not    string
	}{
		{"ABRT", []string{"CRIU itself has crashed (signal: aborted", "BUG at criu/mem.c:42", "try again"}, "somebody"},
		{"SEGV", []string{"CRIU itself has crashed (signal: segmentation fault"}, "somebody"},
		{"KILL", []string{"somebody ended CRIU (signal: killed)", "try again"}, "crashed"},
		{"TERM", []string{"somebody ended CRIU (signal: terminated)"}, "crashed"},
	} {
		closed := exec.Command("/bin/sh", "-c", "ulimit -c 0; kill -"+test.signal+" $$").Run()
		if !WasKilled(closed) {
			t.Fatalf("%s: %v", test.signal, closed)
		}
		text := HowKilled(closed, log).Error()
		for _, part := range test.says {
			if !strings.Contains(text, part) {
				t.Errorf("%s: the message does not say %q: %s", test.signal, part, text)
			}
		}
		if strings.Contains(text, test.not) {
			t.Errorf("%s: the message says %q: %s", test.signal, test.not, text)
		}
	}
	closed := exec.Command("/bin/sh", "-c", "kill -SEGV $$").Run()
	if text := HowKilled(closed, log+"-missing").Error(); !strings.Contains(text, `its log: ""`) {
		t.Errorf("without a log: %s", text)
	}
}
