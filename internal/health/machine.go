package health

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/proc"
	"stasis/internal/track"
	"stasis/internal/uffd"
)

// Machine says, feature by feature, whether this machine can dump and restore.
// criuPath is the CRIU to use; "" is the first that is new enough. It takes
// some tenths of a second.
func Machine(ctx context.Context, criuPath string) []Result {
	criu.Forget() // what is asked here is asked of the kernel as it is now
	results := []Result{kernel(), user()}
	results = append(results, capabilities()...)
	results = append(results, criuResults(ctx, criuPath)...)
	return append(results,
		userfaultfd(), pagemapScan(), writeTracking(), softDirty(), guardPages(),
		checkpointRestore(), ptrace(), seccomp(), socketDiag(), network(ctx),
		pids(), openFiles(), pipes(), overcommit(), mappings(), hugePages(), memory(),
		workFolders(), checkpointFolder(),
	)
}

func kernel() Result {
	const name = "kernel"
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fail(name, err.Error(), "")
	}
	release := unix.ByteSliceToString(u.Release[:])
	switch {
	case runtime.GOARCH != "amd64":
		return fail(name, "Linux "+release+" on "+runtime.GOARCH, "use a machine with an x86-64 CPU: the memory can be kept from CRIU there only")
	case !atLeast(release, 6, 7):
		return warn(name, "Linux "+release, "use Linux 6.7 or newer: before, memory is copied while the process stands still")
	}
	return ok(name, "Linux %s", release)
}

// atLeast compares the beginning of a release such as 6.12.3-amd64.
func atLeast(release string, major, minor int) bool {
	var has [2]int
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	for i := range min(len(parts), len(has)) {
		has[i], _ = strconv.Atoi(parts[i])
	}
	return has[0] > major || has[0] == major && has[1] >= minor
}

func user() Result {
	if uid := os.Geteuid(); uid != 0 {
		return fail("root", fmt.Sprintf("this is user %d", uid), "run Stasis as root, with sudo for example")
	}
	return ok("root", "yes")
}

// wantedCapabilities are those without which something does not work.
var wantedCapabilities = []struct {
	name   string
	bit    uint
	status Status // where it is missing
	means  string
}{
	{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, Fail, "CRIU needs it for nearly everything"},
	{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE, Fail, "processes cannot be stopped, nor their memory read"},
	{"CAP_CHECKPOINT_RESTORE", unix.CAP_CHECKPOINT_RESTORE, Warn, "processes cannot get their pids back without CAP_SYS_ADMIN"},
	{"CAP_SYS_RESOURCE", unix.CAP_SYS_RESOURCE, Warn, "processes of other users cannot be dumped, and higher limits not be restored"},
}

// furtherCapabilities matter for what some programs have.
var furtherCapabilities = []struct {
	name string
	bit  uint
}{
	{"CAP_CHOWN", unix.CAP_CHOWN}, {"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE}, {"CAP_DAC_READ_SEARCH", unix.CAP_DAC_READ_SEARCH},
	{"CAP_FOWNER", unix.CAP_FOWNER}, {"CAP_KILL", unix.CAP_KILL}, {"CAP_SETGID", unix.CAP_SETGID}, {"CAP_SETUID", unix.CAP_SETUID},
	{"CAP_SETPCAP", unix.CAP_SETPCAP}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_NET_RAW", unix.CAP_NET_RAW},
	{"CAP_IPC_LOCK", unix.CAP_IPC_LOCK}, {"CAP_SYS_CHROOT", unix.CAP_SYS_CHROOT}, {"CAP_SYS_NICE", unix.CAP_SYS_NICE},
	{"CAP_SYS_TIME", unix.CAP_SYS_TIME}, {"CAP_MKNOD", unix.CAP_MKNOD},
}

const giveCapability = "run as root outside of a container, or give the container this capability (docker run --cap-add, CapabilityBoundingSet of systemd)"

func capabilities() []Result {
	has, err := proc.Capabilities(os.Getpid())
	if err != nil {
		return []Result{fail("capabilities", err.Error(), "")}
	}
	var results []Result
	for _, c := range wantedCapabilities {
		if has&(1<<c.bit) == 0 {
			results = append(results, Result{Name: c.name, Status: c.status, Detail: "missing: " + c.means, Remedy: giveCapability})
			continue
		}
		results = append(results, ok(c.name, "yes"))
	}
	var missing []string
	for _, c := range furtherCapabilities {
		if has&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if missing != nil {
		return append(results, warn("capabilities", strings.Join(missing, ", ")+" missing: programs that have or need them cannot be restored as they were", giveCapability))
	}
	return append(results, ok("capabilities", "all others that matter"))
}

func hasCapability(bit uint) bool {
	has, err := proc.Capabilities(os.Getpid())
	return err == nil && has&(1<<bit) != 0
}

func criuResults(ctx context.Context, path string) []Result {
	b, err := criu.Find(ctx, path)
	if err != nil {
		return []Result{fail("CRIU", err.Error(), "install CRIU 4.2 or newer, or run scripts/install-criu (/usr/lib/stasis/install-criu of the packages)")}
	}
	const name, remedy = "preload", "dumps then use --engine lazy-pages: some 30 ms of pause for each GiB; use a CRIU that is neither static nor setuid"
	results := []Result{ok("CRIU", "%s, %s", b.VersionString(), b.Path)}
	if !b.Dynamic {
		return append(results, warn(name, b.Path+" takes no preloaded library", remedy))
	}
	if err := b.TryPreload(ctx); err != nil {
		return append(results, warn(name, err.Error(), remedy))
	}
	return append(results, ok(name, "CRIU loads the library that keeps memory from it"))
}

func userfaultfd() Result {
	const name, remedy = "userfaultfd", "use a kernel with CONFIG_USERFAULTFD, and no seccomp filter that forbids it: restores need it"
	fd, err := uffd.New(unix.O_NONBLOCK)
	if err != nil {
		return fail(name, err.Error(), remedy)
	}
	defer fd.Close()
	events := uint64(uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove | uffd.FeatureEventUnmap)
	if _, err := fd.API(events); err != nil {
		return fail(name, "no events of a process' memory: "+err.Error(), "run as root with CAP_SYS_PTRACE, on Linux 4.11 or newer")
	}
	return ok(name, "yes, with events")
}

func pagemapScan() Result {
	if !proc.CanScan() {
		return warn("PAGEMAP_SCAN", "missing", "use Linux 6.7 or newer: before, CRIU dumps all memory while the process stands still")
	}
	return ok("PAGEMAP_SCAN", "yes")
}

// guardPages: a kernel that has them and does not tell where they are makes dumps
// of programs with guard pages fail.
func guardPages() Result {
	const name = "guard pages"
	if proc.KnowsGuards() {
		return ok(name, "yes, they are kept")
	}
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return ok(name, "unknown: %v", err)
	}
	defer func() { _ = unix.Munmap(page) }()
	if unix.Madvise(page, unix.MADV_GUARD_INSTALL) != nil {
		return ok(name, "this kernel has none")
	}
	return warn(name, "this kernel does not tell where a program has some (MADV_GUARD_INSTALL), as newer C libraries make below stacks",
		"use Linux 6.15 or newer: before, a dump of such a program fails or loses them")
}

func writeTracking() Result {
	if err := track.Available(); err != nil {
		return warn("WP_ASYNC", err.Error(), "use Linux 6.7 or newer: before, memory is copied while the process stands still")
	}
	return ok("WP_ASYNC", "a trial write was noticed")
}

// softDirty is for information: nothing needs it where WP_ASYNC works. The
// kernel accepts the request also where it does nothing, so a page is written.
func softDirty() Result {
	switch works, err := trySoftDirty(); {
	case err != nil:
		return ok("soft-dirty", "unknown: %v", err)
	case works:
		return ok("soft-dirty", "a trial write was noticed")
	default:
		return ok("soft-dirty", "not in this kernel; WP_ASYNC takes its place")
	}
}

func checkpointRestore() Result {
	const name, remedy = "CONFIG_CHECKPOINT_RESTORE", "use a kernel that is built with it, as those of all large distributions are"
	for _, path := range []string{"/proc/self/map_files", "/proc/self/timers", "/proc/sys/kernel/ns_last_pid"} {
		if _, err := os.Stat(path); err != nil {
			return fail(name, path+" is missing", remedy)
		}
	}
	return ok(name, "yes")
}

// ptrace looks for what may keep even root from tracing (Yama,
// Documentation/admin-guide/LSM/Yama.rst).
func ptrace() Result {
	scope, err := readNumber("/proc/sys/kernel/yama/ptrace_scope")
	switch {
	case err != nil:
		return ok("ptrace", "not restricted")
	case scope >= 3:
		return fail("ptrace", "kernel.yama.ptrace_scope is 3: nobody may trace", "set kernel.yama.ptrace_scope to 1 and reboot: it cannot be lowered before")
	case scope > 0 && !hasCapability(unix.CAP_SYS_PTRACE):
		return fail("ptrace", fmt.Sprintf("kernel.yama.ptrace_scope is %d", scope), "run with CAP_SYS_PTRACE, or sysctl -w kernel.yama.ptrace_scope=0")
	}
	return ok("ptrace", "allowed (kernel.yama.ptrace_scope %d)", scope)
}

func seccomp() Result {
	task, err := proc.ReadTask(os.Getpid())
	switch {
	case err != nil:
		return fail("seccomp", err.Error(), "")
	case task.Seccomp != 0:
		return warn("seccomp", "a filter is set on this program, as in a container: it may forbid what CRIU needs, and restored programs keep it",
			"run Stasis outside of the container, or the container with --security-opt seccomp=unconfined")
	}
	return ok("seccomp", "no filter on this program")
}

func readNumber(path string) (int, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}
