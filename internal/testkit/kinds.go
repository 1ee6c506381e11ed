package testkit

import (
	"fmt"
	"os"
	"path/filepath"

	"stasis/internal/require"
)

// subjects are kinds made of subject's features, together in one process where
// they don't disturb each other: a difference names the feature.
var subjects = []struct {
	Kind
	features []string
}{
	// Memory.
	{Kind{Name: "one-thread"}, []string{"mem:mib=16,rate=0,watch=no"}},
	{Kind{Name: "memory-written"}, []string{"mem:mib=64,rate=40,writers=2,touched=90"}},
	{Kind{Name: "memory-huge-pages"}, []string{"mem:mib=32,rate=20,thp=yes"}},
	{Kind{Name: "memory-kinds"}, []string{"locked", "protected", "zeroread", "advised", "deepstack"}},
	{Kind{Name: "memory-reserved"}, []string{"reserved", "mem:mib=4,rate=1"}},
	{Kind{Name: "memory-churn"}, []string{"churn:threads=4,rate=400"}},
	{Kind{Name: "memory-guards"}, []string{"guards:locked=0", "churn:threads=2,rate=300,guards=yes"}},
	{Kind{Name: "memory-locked-guards", CRIULacks: "CRIU cannot put guard pages back in locked memory"}, []string{"guards"}},
	{Kind{Name: "memory-shared"}, []string{"filemap", "anonshared", "memfd"}},
	{Kind{Name: "sysv-shm"}, []string{"sysvshm"}},

	// Processes and threads.
	{Kind{Name: "threads"}, []string{"threads:count=64"}},
	{Kind{Name: "tree", Shares: true}, []string{"tree:mib=24,children=4,grandchildren=2"}},
	{Kind{Name: "children"}, []string{"zombie", "stopped", "sessions"}},

	// What processes hold open.
	{Kind{Name: "files"}, []string{"files", "deleted", "cwd"}},
	{Kind{Name: "file-locks", Needs: Needs{FileLocks: true}}, []string{"locks"}},
	// A dump that leaves the program running takes the extra link away again, and with it what a restore needs.
	{Kind{Name: "link-remap", Needs: Needs{LinkRemap: true}, Forward: true}, []string{"linkremap"}},
	{Kind{Name: "channels"}, []string{"pipe", "socketpair", "pty", "unixlisten"}},
	{Kind{Name: "network", Needs: Needs{TCPEstablished: true}}, []string{"tcplisten", "tcp", "udp"}},
	{Kind{Name: "events"}, []string{"epoll", "eventfd", "signalfd", "timerfd", "inotify"}},
	{Kind{Name: "timers"}, []string{"posixtimer", "itimer", "alarm"}},

	// What a process is.
	{Kind{Name: "identity"}, []string{"umask", "rlimits", "sched", "groups", "env", "caps", "handlers",
		"prctls:no_new_privs=1,pdeathsig=1,dumpable=1,subreaper=1,keepcaps=1,thp_disable=1,name=1", "filtered"}},
	{Kind{Name: "real-time"}, []string{"sched:policy=rr"}},
	{Kind{Name: "pending-signals"}, []string{"pending"}},

	// What CRIU gets wrong, and Stasis puts back.
	{Kind{Name: "affinity", CRIULacks: "CRIU does not save which CPUs a thread is bound to"}, []string{"affinity"}},
	{Kind{Name: "timer-slack", CRIULacks: "CRIU does not save PR_SET_TIMERSLACK"}, []string{"prctls:timerslack=1"}},
	{Kind{Name: "timerfd-periodic", CRIULacks: "CRIU restores a periodic timerfd with an unread tick switched off"},
		[]string{"timerfd:period=5"}},
	{Kind{Name: "timerfd-past", CRIULacks: "CRIU lets a timerfd go off again that was set to a point in time"}, []string{"timerfd:past=1"}},
	{Kind{Name: "settings", CRIULacks: "CRIU does not save CPUs, timer slack, I/O priority, time slice, personality, coredump_filter"},
		[]string{"settings", "mem:mib=4"}},
	{Kind{Name: "deadline", CRIULacks: "CRIU dumps a thread of policy SCHED_DEADLINE, and cannot restore it"}, []string{"settings:deadline=1"}},
	{Kind{Name: "eventfd-semaphore", CRIULacks: "CRIU forgets EFD_SEMAPHORE"}, []string{"eventfd:semaphore=1"}},
	{Kind{Name: "eventfd-64-bit", CRIULacks: "CRIU keeps 32 bits of an eventfd's counter"}, []string{"eventfd:count=0x123456789abc"}},

	// What it refuses.
	{Kind{Name: "io-uring", Refused: "io_uring"}, []string{"iouring", "mem:mib=4"}},
	{Kind{Name: "multipath-tcp", Refused: "MPTCP"}, []string{"mptcp", "mem:mib=4"}},
	{Kind{Name: "traced", Refused: "trace"}, []string{"traced", "mem:mib=4"}},
	{Kind{Name: "first-thread-ended", Refused: "first thread"}, []string{"headless", "mem:mib=4"}},
	{Kind{Name: "memory-of-its-parent", Refused: "CLONE_VM"}, []string{"sharing", "mem:mib=4"}},
	{Kind{Name: "dispatched-calls", Refused: "PR_SET_SYSCALL_USER_DISPATCH"}, []string{"dispatched", "mem:mib=4"}},
}

func subjectKinds() []Kind {
	var kinds []Kind
	for _, s := range subjects {
		kind := s.Kind
		kind.Start = func(t T) Program { t.Helper(); return StartSubject(t, s.features...) }
		kinds = append(kinds, kind)
	}
	return append(kinds,
		Kind{Name: "memory-tmpfs", Start: startTmpfs},
		Kind{Name: "memory-hugetlb", Start: startHugetlb},
		Kind{Name: "other-user", Start: startOtherUser},
	)
}

func startTmpfs(t T) Program {
	t.Helper()
	const shm = "/dev/shm"
	if _, err := os.Stat(shm); err != nil {
		require.Missing(t, "tmpfs", "%v", err)
	}
	path := filepath.Join(shm, fmt.Sprintf("stasis-subject-%d", os.Getpid()))
	t.Cleanup(func() { _ = os.Remove(path) })
	return StartSubject(t, "tmpfs:path="+path)
}

func startHugetlb(t T) Program {
	t.Helper()
	// As many again for the restore, which may hold the pages twice for a moment.
	require.HugePages(t, 4)
	return StartSubject(t, "hugetlb:pages=2")
}

func startOtherUser(t T) Program {
	t.Helper()
	require.Capability(t, "CAP_SYS_RESOURCE", "CRIU reads and sets the limits of another user's process")
	return StartSubject(t, "mem:mib=8", "user")
}
