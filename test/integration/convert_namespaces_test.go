package integration

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// TestImportNamespaces: an archive of a tree with namespaces of its own restores
// with them. (One with a mount namespace also needs its root file system.)
func TestImportNamespaces(t *testing.T) {
	require.Root(t)
	criu := require.CRIU(t)
	require.Program(t, "ip") // CRIU has it describe the network
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	images := t.TempDir()
	dump := exec.CommandContext(t.Context(), criu, "dump", "--tree", strconv.Itoa(cmd.Process.Pid), "--images-dir", images, "--log-file", "log", "-v2")
	if err := dump.Run(); err != nil {
		log, _ := os.ReadFile(filepath.Join(images, "log"))
		t.Fatalf("criu dump: %v\n%s", err, log)
	}
	archive, checkpoint := filepath.Join(t.TempDir(), "archive.tar"), filepath.Join(t.TempDir(), "checkpoint")
	pack(t, images, archive)
	imported, err := stasis.Import(t.Context(), stasis.ImportOptions{Path: archive, Dir: checkpoint})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"pid", "net", "uts", "ipc"} {
		if own := imported.Manifest.Processes[0].OwnNamespaces; !slices.Contains(own, kind) {
			t.Errorf("the checkpoint has %v as the tree's own namespaces, without %s", own, kind)
		}
	}
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lazy=%t", lazy), func(t *testing.T) {
			result, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: checkpoint, Lazy: lazy})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { testkit.Kill(t, result.PID) })
			task, err := proc.ReadTask(result.PID)
			if err != nil {
				t.Fatal(err)
			}
			if task.NSPID != 1 || len(task.Cmdline) != 2 || task.Cmdline[1] != "1000" {
				t.Errorf("restored is %v with pid %d inside", task.Cmdline, task.NSPID)
			}
			ours, err := proc.Namespaces(os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := proc.Namespaces(result.PID)
			if err != nil {
				t.Fatal(err)
			}
			for _, kind := range []string{"pid", "net", "uts", "ipc"} {
				if ours[kind] == theirs[kind] {
					t.Errorf("the restored tree has no %s namespace of its own", kind)
				}
			}
		})
	}
}

// pack makes an archive as container engines do.
func pack(t *testing.T, images, to string) {
	t.Helper()
	file, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := tar.NewWriter(file)
	entries, err := os.ReadDir(images)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(images, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Name: "checkpoint/" + e.Name(), Mode: 0o600, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
