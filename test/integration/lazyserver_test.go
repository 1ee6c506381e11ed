package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"stasis/internal/require"
	"stasis/internal/testkit"
)

// asking restores with stock CRIU, which asks the page server for memory.
type asking struct {
	stock  testkit.Checkpointer
	stasis string
	served *int64 // pages
}

// Dump implements [testkit.Checkpointer]: CRIU's images, and the checkpoint that import makes of them.
func (a asking) Dump(t testkit.T, pid int, dir string, needs testkit.Needs, kill bool) error {
	t.Helper()
	images := filepath.Join(dir, "criu")
	if err := os.Mkdir(images, 0o700); err != nil {
		return err
	}
	if err := a.stock.Dump(t, pid, images, needs, kill); err != nil {
		return err
	}
	_, err := importTo(t.Context(), images, filepath.Join(dir, "checkpoint"))
	return err
}

// Restore implements [testkit.Checkpointer].
func (a asking) Restore(t testkit.T, dir string, needs testkit.Needs) error {
	t.Helper()
	images := filepath.Join(dir, "criu")
	server, err := startPageServer(t, a.stasis, filepath.Join(dir, "checkpoint"), "--lazy-pages")
	if err != nil {
		return err
	}
	criu := func(log string, args ...string) (*exec.Cmd, func(error) error) {
		args = append(args, "--images-dir", images, "--log-file", log, "-v2")
		return exec.CommandContext(t.Context(), require.CRIU(t), args...), func(err error) error {
			if err == nil {
				return nil
			}
			text, _ := os.ReadFile(filepath.Join(images, log))
			return fmt.Errorf("criu %s: %w\n%s", args[0], err, text)
		}
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	pager, explainPager := criu("pager.log", "lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", server.port, "--status-fd", "3")
	pager.ExtraFiles = []*os.File{tell}
	err = pager.Start()
	tell.Close()
	if err != nil {
		return err
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return explainPager(pager.Wait())
	}
	restore, explain := criu("restore.log", append([]string{"restore", "--restore-detached", "--lazy-pages"}, needs.Flags()...)...)
	err = errors.Join(explain(restore.Run()), explainPager(pager.Wait()), server.wait())
	got, err2 := server.figures()
	*a.served += got.Pages
	return errors.Join(err, err2)
}

// TestLazyPagesFromPageServer: stock CRIU restores lazily with pages that it asks Stasis for.
func TestLazyPagesFromPageServer(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	stasis := buildStasis(t)
	for _, kind := range testkit.Kinds() {
		if kind.Name != "memory-written" && kind.Name != "threads" {
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			a := asking{testkit.StockCRIU(t), stasis, new(int64)}
			testkit.RoundTrip(t, kind, a)
			t.Logf("%s pages were served", strconv.FormatInt(*a.served, 10))
			if *a.served < 100 {
				t.Error("hardly a page was asked for")
			}
		})
	}
}
