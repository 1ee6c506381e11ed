package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"stasis/internal/require"
)

// stepWithin bounds one dump or restore.
const stepWithin = 2 * time.Minute

// stockCRIU is plain CRIU, as its users run it.
type stockCRIU struct{ path string }

// StockCRIU is the checkpointer that is plain CRIU. It shows what can be
// expected of a machine, and that a program is a fair test.
func StockCRIU(t T) Checkpointer {
	t.Helper()
	require.Root(t)
	return stockCRIU{require.CRIU(t)}
}

// Dump implements [Checkpointer].
func (c stockCRIU) Dump(t T, pid int, dir string, needs Needs, kill bool) error {
	t.Helper()
	args := []string{"dump", "--tree", fmt.Sprint(pid)}
	if !kill {
		args = append(args, "--leave-running")
	}
	return c.run(t, dir, "dump.log", append(args, needs.Flags()...))
}

// Restore implements [Checkpointer].
func (c stockCRIU) Restore(t T, dir string, needs Needs) error {
	t.Helper()
	return c.run(t, dir, "restore.log", append([]string{"restore", "--restore-detached"}, needs.Flags()...))
}

func (c stockCRIU) run(t T, dir, log string, args []string) error {
	ctx, cancel := context.WithTimeout(t.Context(), stepWithin)
	defer cancel()
	args = append(args, "--images-dir", dir, "--log-file", log, "-v2")
	// Its output must not be a pipe of ours: a restored tree would hold it open.
	cmd := exec.CommandContext(ctx, c.path, args...)
	if err := cmd.Run(); err != nil {
		what := errorsOf(filepath.Join(dir, log))
		if what == "" {
			// Killed, or it gave up without a word: whatever there is may explain it.
			what = fmt.Sprintf("%v, its log says no error; it ends\n%sthe folder has\n%s", cmd.ProcessState, tailOf(filepath.Join(dir, log)), listOf(dir))
		}
		return fmt.Errorf("criu %s: %w\n%s", strings.Join(args, " "), errors.Join(err, ctx.Err()), what)
	}
	return nil
}

// errorsOf returns the error lines of a log of CRIU.
func errorsOf(log string) string {
	text, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		// It complains at every start where CAP_SYS_RESOURCE is missing.
		if strings.Contains(line, "Error") && !strings.Contains(line, "RLIMIT_NOFILE for self") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// tailOf returns the last lines of a file.
func tailOf(path string) string {
	const most = 4096
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error() + "\n"
	}
	return string(text[max(0, len(text)-most):]) + "\n"
}

// listOf names the files of a folder, with their sizes.
func listOf(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil {
			fmt.Fprintf(&b, "%s (%d) ", entry.Name(), info.Size())
		}
	}
	return b.String()
}
