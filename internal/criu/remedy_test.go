package criu

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Lines as CRIU 4.2 writes them into its log, without time and source position.
var realLines = []struct {
	line string
	want string // a part of the remedy
}{
	{"Connected TCP socket, consider using --tcp-established option.", "--tcp-close"},
	{"Connected TCP socket in image", "restore with --tcp-established"},
	{"Need to set the --tcp-close options.", "restore with --tcp-close"},
	{"In-flight connection (l) for 1a2b", "--skip-in-flight"},
	{"In-flight connections can be ignored with the --skip-in-flight option.", "--skip-in-flight"},
	{"Failed to lock TCP connection 3039", "--network-lock iptables"},
	{"Locking network failed using nftables", "install nftables"},
	{"CRIU was built without libnftables support", "--network-lock iptables"},
	{"Can't bind inet socket (id 3): Address already in use", "ss -tulpn"},
	{"Can't bind inet socket (id 3): Cannot assign requested address", "ip address add"},
	{"Can't connect inet socket back: Cannot assign requested address", "ip address add"},
	{"Unsupported proto 262 for socket 1f4a", "multipathtcp=0"},
	{"Unsupported proto 132 for socket 1f4a", "SCTP"},
	{"BUG! Unknown socket collected (family 40)", "vsock"},
	{"Can't get 1:16 opt: Operation not supported", "CRIU 4.2"},
	{"External socket is used. Consider using --ext-unix-sk option.", "--ext-unix-sk"},
	{"Can't dump half of stream unix connection. name: /run/a; peer name: (null)", "both ends"},
	{"External socket found in image. Consider using the --ext-unix-sk option to allow restoring it.", "--ext-unix-sk"},
	{"Unix socket 1234 without peer 99", "dump again"},
	{"Diag module missing (-2)", "modprobe"},
	{"Can't dump file 7 of that type [600] (anon anon_inode:[io_uring])", "UV_USE_IO_URING=0"},
	{"Can't dump file 7 of that type [600] (anon anon_inode:[userfaultfd])", "userfaultfd"},
	{"Can't dump file 7 of that type [600] (anon anon_inode:[perf_event])", "profiler"},
	{"Can't dump file 7 of that type [600] (anon anon_inode:bpf-prog)", "BPF"},
	{"send_fds failed (-22)", "io_uring"},
	{"CRIU does not currently support dumping BPF map type 27!", "BPF map"},
	{"Can't dump file 5 of that type [20666] (chr 10:229 )", "unmount"},
	{"Can't dump file 5 of that type [20666] (chr 226:128 )", "GPU"},
	{"Can't dump file 5 of that type [20666] (chr 10:200 )", "--external dev["},
	{"Escaped/closed fd descriptor 12 on pid 77", "epoll"},
	{"The packetized mode for pipes is not supported yet", "O_DIRECT"},
	{"Can't find suitable path for handle (dev 0x800001 ino 0x2b): -2", "irmap-scan-path"},
	{"Some file locks are hold by dumping tasks! You can try --file-locks to dump them.", "dump with --file-locks"},
	{"Can't dump ghost file /tmp/x of 2097152 size, increase limit", "--ghost-limit"},
	{"Can't create link remap for /tmp/x. Use --link-remap option.", "--link-remap"},
	{"File /usr/lib/libx.so has bad size 77 (expect 78)", "put the version of the checkpoint back"},
	{"File /usr/lib/libx.so has bad build-ID", "another version"},
	{"File /tmp/x has bad mode 0100644 (expect 0100600)", "chmod"},
	{"Can't open file tmp/x on restore: No such file or directory", "put it back"},
	{"Can't lookup mount=42 for fd=3 path=/x", "mount namespace"},
	{"The root process 123 is not a session leader. Consider using --shell-job option", "--shell-job"},
	{"Found dangling tty with sid 12 pgid 12 (pts) on peer fd 0.", "--shell-job"},
	{"Found slave peer index 3 without correspond master peer", "--shell-job"},
	{"A session leader of 12(3) is outside of its pid namespace", "setsid"},
	{"Current sid 77 intersects with pid (1) in images", "setsid stasis restore"},
	{"Don't have tty to inherit session from, aborting", "from a terminal"},
	{"The criu itself is within dumped tree.", "from outside"},
	{"Unseizable non-zombie 77 found, state t, err -1/1", "debugger"},
	{"Unable to freeze cgroup /sys/fs/cgroup/x (100 x 100ms attempts, timeout: 10s)", "--timeout"},
	{"Timeout reached. Try to interrupt: 0", "--timeout"},
	{"Zombie thread not supported", "restart"},
	{"suspending seccomp failed: Operation not permitted", "CAP_SYS_ADMIN"},
	{"seccomp: SECCOMP_SET_MODE_FILTER returned -1 on tid 7", "CAP_SYS_ADMIN"},
	{"Can't fork for 4242: File exists", "end the process that has it"},
	{"Can't fork for 4242: Invalid argument", "kernel.pid_max"},
	{"Unable to create a thread: -17", "thread id of the tree is in use"},
	{"Unexpected rt vDSO area bounds", "4.2"},
	{"CPU instruction capabilities do not match run time", "--cpu-cap none"},
	{"FPU feature required by image is not supported on host (fpu:0 fxsr:0 osxsave:0 xsaves:1)", "--cpu-cap none"},
	{"CPU xfeatures has unsupported bits (0xe0)", "AVX-512"},
	{"Failed to prepare shadow stack memory", "SHSTK"},
	{"Can't handle non-regular mapping on 12's map 7f0000000000", "device"},
	{"PID 12 has uprobes vma. Consider using --allow-uprobes.", "--criu-opt allow-uprobes"},
	{"Task 12 with SysVIPC shmem map @7f00 doesn't live in IPC ns", "unshare --ipc"},
	{"Unable to open an userfaultfd descriptor: Function not implemented", "CONFIG_USERFAULTFD"},
	{"connect to lazy-pages.socket failed: No such file or directory", "restore again"},
	{"Can't restore 7f0000000000 mapping with fffffffffffffff4", "vm.max_map_count"},
	{"The --root option is required to restore a mount namespace", "--root"},
	{"12:/data doesn't have a proper root mount", "--external mnt["},
	{"Mount 12 /data (master_id: 1 shared_id: 0) has unreachable sharing. Try --enable-external-masters.", "enable-external-masters"},
	{"Can't dump nested pid namespace for 12", "that process alone"},
	{"Can't dump a pid namespace without the process init", "process 1"},
	{"Failed to setns when join-ns net:/run/netns/x: Invalid argument", "right kind|of the kind"},
	{"IP tool failed on addr save", "iproute2"},
	{"Cgroup dir /sys/fs/cgroup/x doesn't exist", "--manage-cgroups"},
	{"Can't move into /x (12/-1): Device or resource busy", "--manage-cgroups ignore"},
	{"Can't get rlimit 0: Operation not permitted", "CAP_SYS_RESOURCE"},
	{"Unable to restore capabilities: -1", "all capabilities"},
	{"sys_prctl(PR_SET_MM, PR_SET_MM_MAP) failed with -1", "CAP_CHECKPOINT_RESTORE"},
	{"Write -1000 to /proc/self/oom_score_adj failed: Permission denied", "CAP_SYS_RESOURCE"},
	{"kerndat_uffd failed when initializing kerndat.", "stasis check"},
	{"Can't write img file: No space left on device", "room"},
	{"Not supported images version 9", "newer CRIU"},
	{"Magic doesn't match for core-7.img", "stasis verify"},
	{"Can't create inet socket: Too many open files", "ulimit -n"},
	{"1234 killed by signal 9: Killed", "dmesg"},
}

func TestRemedyOfRealLines(t *testing.T) {
	for _, test := range realLines {
		got, line := Remedy([]string{test.line})
		ok := false
		for want := range strings.SplitSeq(test.want, "|") {
			ok = ok || strings.Contains(got, want)
		}
		if !ok || line != test.line {
			t.Errorf("%q: %q, want %q in it", test.line, got, test.want)
		}
	}
}

func TestRemedyTakesTheFirstReason(t *testing.T) {
	lines := []string{
		"Something that nobody knows",
		"Can't dump file 7 of that type [600] (anon anon_inode:[io_uring])",
		"Dump files (pid: 12) failed with -1",
		"1234 killed by signal 9: Killed",
	}
	if got, line := Remedy(lines); !strings.Contains(got, "io_uring") || line != lines[1] {
		t.Errorf("%q, %q does not explain the second line", got, line)
	}
	for _, nothing := range [][]string{nil, {""}, {"Something that nobody knows"}} {
		if got, line := Remedy(nothing); got != "" || line != "" {
			t.Errorf("%q is explained by %q for %q", nothing, got, line)
		}
	}
}

// The lines of a dump whose action script has failed: all but one follow from it.
func TestRemedyOfAFailedScript(t *testing.T) {
	lines := []string{
		"exited, status=3",
		"Script /srv/hook.sh exited with -1",
		"One of more action scripts failed",
		"Pre dump script failed with -1!",
		"Unable to detach from 4492: No such process",
	}
	if got, line := Remedy(lines); !strings.Contains(got, "--action-script") || line != lines[1] {
		t.Errorf("%q, %q", got, line)
	}
}

// What is wrong and what to do comes first, then the words of CRIU.
func TestErrorBeginsWithWhatIsKnown(t *testing.T) {
	for _, test := range []struct {
		err  Error
		want string
	}{
		{Error{Cause: errNoReason, Lines: []string{"a", "b"}}, `CRIU says "b"`},
		{Error{Cause: ErrRequest}, ErrRequest.Error()},
		{Error{Cause: ErrRequest, Lines: []string{"a"}}, `CRIU says "a" (` + ErrRequest.Error() + ")"},
		{Error{Cause: errNoReason, Lines: []string{"a", "b"}, Remedy: "it is so: do this", Reason: "a"},
			`it is so: do this (CRIU says "a", and at last "b")`},
		{Error{Cause: errNoReason, Lines: []string{"a", "b"}, Remedy: "it is so: do this", Reason: "b"}, `it is so: do this (CRIU says "b")`},
		{Error{Cause: ErrRequest, Remedy: "it is so: do this"}, "it is so: do this (" + ErrRequest.Error() + ")"},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("%s; want %s", got, test.want)
		}
	}
}

// An entry that an earlier one hides would never be seen.
func TestNoExplanationIsHidden(t *testing.T) {
	seen := make(map[string]bool)
	for _, list := range [][]explanation{causes, consequences} {
		for i := range list {
			e := &list[i]
			key := strings.Join(e.parts, "…")
			if seen[key] {
				t.Errorf("%q stands there twice", key)
			}
			seen[key] = true
			if first := find(list, key); first != e {
				t.Errorf("%q is hidden by %q", key, strings.Join(first.parts, "…"))
			}
			if e.cause == "" || e.remedy == "" || strings.HasSuffix(e.remedy, ".") {
				t.Errorf("%q: cause %q, remedy %q", key, e.cause, e.remedy)
			}
		}
	}
	if len(seen) < 40 {
		t.Errorf("%d explanations, and there were many more", len(seen))
	}
}

func TestTellsOfTaken(t *testing.T) {
	for _, test := range []struct {
		lines  []string
		number int
		want   bool
	}{
		{[]string{"Can't fork for 4242: File exists"}, 4242, true},
		{[]string{"Can't fork for 4242: File exists"}, 424, false},
		{[]string{"Can't fork for 4242: Invalid argument"}, 4242, false},
		{[]string{"Pid 17 do not match expected 4242"}, 4242, true},
		{[]string{"Unable to create a thread 4243: -17", "4242 exited, status=1"}, 4242, false},
		{[]string{"Unable to create a thread: -17", "Can't fork for 4242: File exists"}, 4242, true},
		{nil, 4242, false},
	} {
		err := fmt.Errorf("restore: %w", &Error{Lines: test.lines})
		if got := TellsOfTaken(err, test.number); got != test.want {
			t.Errorf("%q tells of %d: %v", test.lines, test.number, got)
		}
	}
	if TellsOfTaken(errors.New("Can't fork for 4242: File exists"), 4242) {
		t.Error("an error that is not CRIU's tells of a number")
	}
}
