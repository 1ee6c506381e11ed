package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// TestThroughAPipe is "stasis dump process PID --dir - | ssh host stasis restore process --path -" on one machine: what is behind the
// pipe has what sshd gives a command, a session of its own, no terminal, and next to no environment.
func TestThroughAPipe(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	binary, place := buildStasis(t), t.TempDir()
	kinds := testkit.Kinds()
	kind := kinds[slices.IndexFunc(kinds, func(k testkit.Kind) bool { return k.Name == "memory-written" })]
	p := kind.Start(t)
	p.Work(t)
	// pipe gives the exit codes of both sides.
	pipe := func(after string, behind ...string) (dump, other string, printed string) {
		t.Helper()
		script := `"$0" dump process "$1" --dir - ` + after + ` | setsid --wait env -i "PATH=$PATH" "STASIS_CHECKPOINT_DIR=$2" "${@:3}"; echo "codes ${PIPESTATUS[@]}" >&2`
		cmd := exec.CommandContext(t.Context(), "bash", append([]string{"-c", script, binary, strconv.Itoa(p.PID()), place}, behind...)...)
		out, err := cmd.CombinedOutput()
		at := strings.LastIndex(string(out), "codes ")
		if err != nil || at < 0 {
			t.Fatalf("the pipe: %v\n%s", err, out)
		}
		codes := strings.Fields(string(out[at:]))
		return codes[1], codes[2], string(out)
	}

	// A far side that fails: the program lives.
	if dump, _, out := pipe("", "false"); dump == "0" {
		t.Errorf("the dump succeeds, and nobody has read it:\n%s", out)
	}
	p.Prove(t)
	p.Work(t)

	// One that keeps it for later.
	kept := filepath.Join(t.TempDir(), "kept")
	if dump, other, out := pipe("--leave-running", binary, "import", "-", "--dir", kept); dump != "0" || other != "0" {
		t.Fatalf("dump into import: exit codes %s and %s\n%s", dump, other, out)
	}
	rewind := p.Snapshot()
	p.Prove(t)
	p.Work(t)

	// One that brings it back at once.
	if dump, other, out := pipe("", binary, "restore", "process", "--path", "-", "--detach"); dump != "0" || other != "0" {
		t.Fatalf("dump into restore: exit codes %s and %s\n%s", dump, other, out)
	}
	p.Prove(t)
	p.Work(t)
	p.Prove(t)

	if _, err := os.Stat(kept); errors.Is(err, unix.ENOENT) {
		t.Fatal("what was imported is gone")
	}
	testkit.Kill(t, p.PID())
	if err := (library{engine: stasis.EngineAuto}).Restore(t, kept, kind.Needs); err != nil {
		t.Fatal(err)
	}
	rewind()
	p.Prove(t)
}
