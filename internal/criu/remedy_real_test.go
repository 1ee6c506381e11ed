package criu

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
	"stasis/internal/subject"
)

// folderVariable names the folder of a test to its subject.
const folderVariable = "STASIS_TEST_FOLDER"

func TestMain(m *testing.M) {
	roles := make(map[string]subject.Role, len(troubles))
	for name, trouble := range troubles {
		roles[name] = func(say func(string, ...any), hear func() (string, bool)) {
			os.Setenv("GODEBUG", "multipathtcp=0")
			err := os.Chdir(os.Getenv(folderVariable))
			if err == nil {
				err = trouble()
			}
			if err != nil {
				say("%v", err)
				return
			}
			say("ready")
			hear()
		}
	}
	subject.Main(m, roles)
}

// kept holds what the program that makes trouble has open.
var kept []any

func keep(what any, err error) error {
	kept = append(kept, what)
	return err
}

// troubles are states that CRIU refuses to dump, or to restore. They work in the
// current folder.
var troubles = map[string]func() error{
	"job": func() error { return nil },
	"tcp": func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if keep(l, err) != nil {
			return err
		}
		if err := keep(net.Dial("tcp", l.Addr().String())); err != nil {
			return err
		}
		return keep(l.Accept())
	},
	"unix": func() error {
		c, err := net.Dial("unix", "socket")
		if keep(c, err) != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1)) // the other end, the test, has accepted it
		return err
	},
	"lock": func() error {
		file, err := os.Create("locked")
		if keep(file, err) != nil {
			return err
		}
		return unix.Flock(int(file.Fd()), unix.LOCK_EX)
	},
	"ghost": func() error {
		file, err := os.Create("deleted")
		if keep(file, err) != nil {
			return err
		}
		if _, err := file.Write(make([]byte, 2<<20)); err != nil {
			return err
		}
		return os.Remove("deleted")
	},
	"link": func() error {
		file, err := os.Create("old")
		if keep(file, err) != nil {
			return err
		}
		if err := os.Link("old", "new"); err != nil {
			return err
		}
		return os.Remove("old")
	},
	"uring": func() error {
		params := make([]byte, 120)
		_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params[0])), 0)
		if errno != 0 {
			return errno
		}
		return nil
	},
	"open": func() error { return keep(os.Open("data")) },
}

// troubled starts a program with one of the troubles, in a session of its own
// unless it shall be a shell's job.
func troubled(t *testing.T, name, dir string) int {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			kept = append(kept, c)
			c.Write([]byte{1})
		}
	}()
	t.Setenv(folderVariable, dir)
	begin := subject.Start
	if name == "job" {
		begin = subject.StartJob
	}
	s := begin(t, name)
	if line := s.Hear(); line != "ready" {
		t.Skipf("%s cannot be had here: %s", name, line)
	}
	return s.PID
}

// runCRIU runs CRIU with a log and returns what the log says when it fails.
func runCRIU(t *testing.T, criu, images string, args ...string) (lines []string, failed bool) {
	t.Helper()
	args = append(args, "--images-dir", images, "--log-file", "log", "-v4")
	out, err := exec.Command(criu, args...).CombinedOutput()
	if err != nil {
		t.Logf("criu %s: %v %s", args[0], err, out)
	}
	return errorLines(filepath.Join(images, "log")), err != nil
}

func explained(t *testing.T, lines []string, want string) {
	t.Helper()
	got, _ := Remedy(lines)
	if !strings.Contains(got, want) {
		t.Errorf("%q\nis explained by %q, want %q", lines, got, want)
	}
	t.Log(got)
}

func TestRemedyOfRealDumps(t *testing.T) {
	require.Root(t)
	criu := require.CRIU(t)
	for name, want := range map[string]string{
		"job": "--shell-job", "tcp": "--tcp-established", "unix": "both ends", "lock": "--file-locks",
		"ghost": "--ghost-limit", "link": "--link-remap", "uring": "io_uring",
	} {
		t.Run(name, func(t *testing.T) {
			options := map[string][]string{"unix": {"--ext-unix-sk"}}[name]
			pid := troubled(t, name, t.TempDir())
			args := append([]string{"dump", "--leave-running", "--tree", strconv.Itoa(pid)}, options...)
			lines, failed := runCRIU(t, criu, t.TempDir(), args...)
			if !failed {
				t.Fatal("CRIU dumped it")
			}
			explained(t, lines, want)
		})
	}
}

func TestRemedyOfRealRestores(t *testing.T) {
	require.Root(t)
	criu := require.CRIU(t)
	for name, test := range map[string]struct {
		leave  bool // the tree runs on
		change func(path string) error
		want   string
	}{
		"pid in use": {leave: true, want: "a pid of the tree is in use"},
		"missing":    {change: os.Remove, want: "is missing: put it back"},
		"longer":     {change: func(path string) error { return os.WriteFile(path, []byte("longer"), 0o600) }, want: "was changed since the dump"},
		"mode":       {change: func(path string) error { return os.Chmod(path, 0o640) }, want: "chmod"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, images := t.TempDir(), t.TempDir()
			path := filepath.Join(dir, "data")
			if err := os.WriteFile(path, []byte("data"), 0o600); err != nil {
				t.Fatal(err)
			}
			pid := troubled(t, "open", dir)
			args := []string{"dump", "--tree", strconv.Itoa(pid)}
			if test.leave {
				args = append(args, "--leave-running")
			}
			if lines, failed := runCRIU(t, criu, images, args...); failed {
				t.Fatalf("the dump failed: %q", lines)
			}
			if !test.leave {
				// A zombie would keep the pid.
				if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
					t.Fatal(err)
				}
				if err := test.change(path); err != nil {
					t.Fatal(err)
				}
			}
			lines, failed := runCRIU(t, criu, images, "restore", "--restore-detached")
			if !failed {
				unix.Kill(pid, unix.SIGKILL)
				t.Fatal("CRIU restored it")
			}
			explained(t, lines, test.want)
		})
	}
}
