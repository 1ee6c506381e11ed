// Package require says what a test needs of the machine: root, CRIU, a program,
// a capability. Each function probes, and where something is missing it skips
// the test with the name of what is missing.
//
// A skip that nobody noticed is a test that nobody runs. Where the environment
// variable STASIS_ALLOW_SKIPS is set (as in continuous integration), only the
// names listed there, separated by commas, may be missing; anything else fails
// the test. Unset, everything may be missing.
//
// Packages whose tests import this one work on the machine as a whole, so
// scripts/test runs them one after the other. All functions may be called from
// the test's goroutine only.
package require

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// T is what helpers for tests use of a test. Every [testing.TB] is one; so can
// be a program that measures, which is no test.
type T interface {
	Helper()
	Name() string
	Context() context.Context
	Cleanup(func())
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Missing ends the test because the machine lacks name, which is one word as it
// would stand in STASIS_ALLOW_SKIPS. The rest says what it is missing for, or
// how to get it.
func Missing(t T, name, format string, args ...any) {
	t.Helper()
	if allowed, set := os.LookupEnv("STASIS_ALLOW_SKIPS"); set && !slices.Contains(strings.Split(allowed, ","), name) {
		t.Fatalf("missing %s, and STASIS_ALLOW_SKIPS=%q does not allow that: "+format, append([]any{name, allowed}, args...)...)
	}
	t.Skipf("missing %s: "+format, append([]any{name}, args...)...)
}

// Root needs the right to checkpoint any process.
func Root(t T) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root", "checkpoints need it; run the tests as root")
	}
}

// Program needs an executable file and returns its path. The name is looked for
// on PATH and in the sbin folders, which are not always on root's PATH; a name
// with a slash is a pattern of [filepath.Glob].
func Program(t T, name string) string {
	t.Helper()
	for _, pattern := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if !strings.Contains(pattern, "/") {
			if path, err := exec.LookPath(pattern); err == nil {
				return path
			}
			continue
		}
		// The last one: of several versions, mostly the newest.
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	Missing(t, filepath.Base(name), "install it with scripts/install-deps")
	return ""
}

// privateCRIU is where scripts/install-criu puts its own.
const privateCRIU = "/usr/local/lib/stasis/criu/bin/criu"

var criuVersion = regexp.MustCompile(`Version: (\d+)\.(\d+)`)

// CRIU needs CRIU 4.2 or newer and returns its path: $STASIS_CRIU, else the one
// on PATH, else that of scripts/install-criu.
func CRIU(t T) string {
	t.Helper()
	candidates := []string{"criu", privateCRIU}
	if explicit := os.Getenv("STASIS_CRIU"); explicit != "" {
		candidates = []string{explicit}
	}
	for _, path := range candidates {
		out, err := exec.Command(path, "--version").Output()
		if err != nil {
			continue
		}
		v := criuVersion.FindSubmatch(out)
		if v == nil {
			continue
		}
		major, _ := strconv.Atoi(string(v[1]))
		minor, _ := strconv.Atoi(string(v[2]))
		if major > 4 || major == 4 && minor >= 2 {
			return path
		}
	}
	Missing(t, "criu", "version 4.2 or newer; run scripts/install-criu")
	return ""
}

// Capability numbers that tests ask for (linux/capability.h).
var capabilities = map[string]uint{
	"CAP_NET_ADMIN":    12,
	"CAP_SYS_PTRACE":   19,
	"CAP_SYS_ADMIN":    21,
	"CAP_SYS_NICE":     23,
	"CAP_SYS_RESOURCE": 24,
}

// HasCapability says whether this process has a capability in its effective set.
// It panics for a name that is not in the table above.
func HasCapability(name string) bool {
	bit, known := capabilities[name]
	if !known {
		panic("require: no capability " + name)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if hex, found := strings.CutPrefix(line, "CapEff:"); found {
			set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && set&(1<<bit) != 0
		}
	}
	return false
}

// Capability needs a capability of Linux, as it is called there.
func Capability(t T, name, why string) {
	t.Helper()
	if !HasCapability(name) {
		Missing(t, name, "%s", why)
	}
}

// HugePages needs n free huge pages of 2 MiB. It asks the kernel for them, and
// gives them back when the test ends.
func HugePages(t T, n int) {
	t.Helper()
	if err := ReserveHugePages(t, n); err != nil {
		Missing(t, "hugetlb", "%v", err)
	}
}

// ReserveHugePages is [HugePages] for a test that can do without them; the error
// says why there are none.
func ReserveHugePages(t T, n int) error {
	t.Helper()
	const setting = "/proc/sys/vm/nr_hugepages"
	file, err := os.Open(setting)
	if err != nil {
		return fmt.Errorf("the kernel has none: %w", err)
	}
	t.Cleanup(func() { file.Close() })
	// Another run of tests would give back what this one uses.
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", setting, err)
	}
	before, err := os.ReadFile(setting)
	if err != nil {
		return err
	}
	had, _ := strconv.Atoi(strings.TrimSpace(string(before)))
	if freeHugePages() < n {
		t.Cleanup(func() {
			if err := os.WriteFile(setting, before, 0o644); err != nil {
				t.Errorf("put back %s: %v", setting, err)
			}
		})
		if err := os.WriteFile(setting, []byte(strconv.Itoa(had+n)), 0o644); err != nil {
			return err
		}
	}
	if free := freeHugePages(); free < n {
		return fmt.Errorf("%d free huge pages, %d wanted (memory is fragmented, or full)", free, n)
	}
	return nil
}

func freeHugePages() int {
	info, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(info)) {
		if value, found := strings.CutPrefix(line, "HugePages_Free:"); found {
			n, _ := strconv.Atoi(strings.TrimSpace(value))
			return n
		}
	}
	return 0
}
