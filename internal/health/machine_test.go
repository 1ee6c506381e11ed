package health

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
)

func byName(results []Result) map[string]Result {
	m := make(map[string]Result)
	for _, r := range results {
		m[r.Name] = r
	}
	return m
}

func TestMachine(t *testing.T) {
	require.Root(t)
	results := Machine(t.Context(), require.CRIU(t))
	for _, r := range results {
		t.Logf("%-4s %s: %s → %s", r.Status, r.Name, r.Detail, r.Remedy)
		if r.Status != OK && r.Remedy == "" {
			t.Errorf("%s: %s: nothing says what to do", r.Name, r.Detail)
		}
	}
	found := byName(results)
	if len(found) != len(results) {
		t.Errorf("some of %d results have the same name", len(results))
	}
	for _, name := range []string{
		"kernel", "root", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE", "CAP_SYS_RESOURCE", "capabilities", "CRIU",
		"preload", "userfaultfd", "PAGEMAP_SCAN", "WP_ASYNC", "soft-dirty", "guard pages", "ptrace", "seccomp", "TCP connections", "pids",
		"RLIMIT_NOFILE", "fs.pipe-max-size", "vm.overcommit_memory", "vm.max_map_count", "transparent huge pages", "memory",
		"work folder", "checkpoint folder",
	} {
		if found[name].Status == "" {
			t.Errorf("%s was not looked at", name)
		}
	}
	if has := require.HasCapability("CAP_SYS_RESOURCE"); has != (found["CAP_SYS_RESOURCE"].Status == OK) {
		t.Errorf("CAP_SYS_RESOURCE is there: %t, and told as %+v", has, found["CAP_SYS_RESOURCE"])
	}
	if raw, err := json.Marshal(found["root"]); err != nil || string(raw) != `{"name":"root","status":"ok","detail":"yes"}` {
		t.Errorf("as JSON: %s, %v", raw, err)
	}
}

func TestMachineWithoutCRIU(t *testing.T) {
	r := byName(criuResults(t.Context(), filepath.Join(t.TempDir(), "criu")))
	if r["CRIU"].Status != Fail || !strings.Contains(r["CRIU"].Remedy, "install") {
		t.Errorf("%+v", r)
	}
}

func TestAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.7": true, "6.7.0-rc1": true, "6.18.44-fc": true, "7.0": true, "6.6.99": false, "5.10.0-30-amd64": false, "6": false, "": false,
	} {
		if got := atLeast(release, 6, 7); got != want {
			t.Errorf("%q is at least 6.7: %t", release, got)
		}
	}
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet", "there")
	if r := Folder(dir); r.Status == Fail || !strings.Contains(r.Detail, dir) {
		t.Errorf("a folder that can be made: %+v", r)
	}
	if r := Folder("/proc/stasis"); r.Status == OK {
		t.Errorf("a folder in /proc: %+v", r)
	}
}

func TestKnownObjects(t *testing.T) {
	for link, want := range map[string]Status{
		"anon_inode:[eventpoll]": "", "anon_inode:inotify": "", "anon_inode:[pidfd]": "", "anon_inode:[io_uring]": Fail,
		"anon_inode:bpf-map": Warn, "anon_inode:bpf-prog": Fail, "anon_inode:kvm-vcpu:0": Fail, "anon_inode:[unheard of]": Fail,
	} {
		if got := knownObject(link); got.status != want || want != "" && got.remedy == "" {
			t.Errorf("%s: %+v, want %q", link, got, want)
		}
	}
}

func TestDevices(t *testing.T) {
	good := []uint64{unix.Mkdev(1, 3), unix.Mkdev(5, 0), unix.Mkdev(5, 2), unix.Mkdev(4, 1), unix.Mkdev(136, 1000), unix.Mkdev(10, 200)}
	bad := []uint64{unix.Mkdev(10, 232), unix.Mkdev(10, 229), unix.Mkdev(226, 128), unix.Mkdev(195, 0), unix.Mkdev(4, 64), unix.Mkdev(240, 7)}
	for _, rdev := range slices.Concat(good, bad) {
		if got := device(rdev); (got.status == "") != slices.Contains(good, rdev) {
			t.Errorf("device %d:%d: %+v", unix.Major(rdev), unix.Minor(rdev), got)
		}
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[uint64]string{1 << 10: "1 KiB", 3 << 20: "3 MiB", 3_000_000: "2.9 MiB", 5 << 29: "2.5 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
	for _, got := range []string{number(1, "process"), number(2, "process"), number(3, "socket")} {
		if !slices.Contains([]string{"1 process", "2 processes", "3 sockets"}, got) {
			t.Errorf("%q", got)
		}
	}
}
