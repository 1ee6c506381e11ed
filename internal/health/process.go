package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// Process says whether a process and its descendants can be dumped, and what
// stands in the way, with the pid and the descriptor. It reads /proc only: the
// tree notices nothing, and may have changed by the time of a dump.
func Process(ctx context.Context, pid int) []Result {
	tree, err := proc.Tree(pid)
	switch {
	case errors.Is(err, proc.ErrGone):
		return []Result{fail("process", fmt.Sprintf("there is no process %d", pid), "see ps -e for those that there are")}
	case err != nil:
		return []Result{fail("process", err.Error(), "run as root")}
	}
	if isKernels(tree[0]) {
		return []Result{fail("process", at(tree[0])+": it is a thread of the kernel", "dump a program")}
	}
	s := newSurvey(tree)
	s.lookAtRoot()
	for _, task := range s.tree {
		if ctx.Err() != nil {
			return []Result{fail("process", ctx.Err().Error(), "")}
		}
		if task.Zombie() {
			s.lookAtZombie(task)
			continue
		}
		if err := s.look(task); err != nil && !ended(task.PID) {
			s.note(Warn, "process", "not all of it can be seen: "+err.Error(), "run as root", at(task))
		}
	}
	s.lookAtTerminals()
	s.lookAtPipes()
	s.lookAtSockets()
	return s.results()
}

// isKernels says whether a process is a thread of the kernel, whose descendants all are.
func isKernels(t *proc.Task) bool { return !t.Zombie() && t.Exe == "" && t.Cmdline == nil }

// ended says whether a process has ended meanwhile, which makes much of /proc
// unreadable.
func ended(pid int) bool {
	t, err := proc.ReadTask(pid)
	return err != nil || t.Zombie()
}

// survey is a look at a tree under way.
type survey struct {
	tree   []*proc.Task
	root   *proc.Task
	pids   map[int]bool
	ours   map[string]string // namespaces of this program
	roots  map[string]string // namespaces of the root of the tree
	mounts map[string]map[int]string

	findings []finding // in the order of their discovery
	found    map[finding]int
	places   [][]string

	descriptors int
	slaves      map[int]string         // terminals: who has which
	masters     map[int]bool           // their other ends
	sockets     map[string]*netSockets // by network namespace
	pipes       map[uint64]*pipeEnds   // by inode
	threads     int
	resident    uint64
}

// finding is something that stands in the way. Equal ones are told together.
type finding struct {
	status             Status
	name, what, remedy string
}

// newSurvey leaves this program out, should it run inside the tree.
func newSurvey(tree []*proc.Task) *survey {
	s := &survey{
		root: tree[0], pids: make(map[int]bool), found: make(map[finding]int),
		mounts: make(map[string]map[int]string), sockets: make(map[string]*netSockets),
		pipes:  make(map[uint64]*pipeEnds),
		slaves: make(map[int]string), masters: make(map[int]bool),
	}
	for _, task := range tree {
		s.pids[task.PID] = true
		if task.PID == os.Getpid() {
			s.note(Fail, "process", "this program runs inside the tree, and so would a dump", "start Stasis from outside of the tree", at(task))
			continue
		}
		s.tree = append(s.tree, task)
	}
	return s
}

// at names a process.
func at(t *proc.Task) string { return fmt.Sprintf("process %d (%s)", t.PID, t.Comm) }

// fd names a descriptor of a process.
func fd(t *proc.Task, d proc.Descriptor) string {
	return fmt.Sprintf("process %d (%s) fd %d", t.PID, t.Comm, d.FD)
}

func (s *survey) note(status Status, name, what, remedy, where string) {
	f := finding{status, name, what, remedy}
	i, known := s.found[f]
	if !known {
		i = len(s.findings)
		s.found[f] = i
		s.findings = append(s.findings, f)
		s.places = append(s.places, nil)
	}
	s.places[i] = append(s.places[i], where)
}

// placesTold is how many places of one finding are named.
const placesTold = 5

// results puts what fails before what warns, and the rest behind.
func (s *survey) results() []Result {
	var results []Result
	for _, status := range []Status{Fail, Warn} {
		for i, f := range s.findings {
			if f.status != status {
				continue
			}
			places := s.places[i]
			text := strings.Join(places[:min(len(places), placesTold)], ", ")
			if more := len(places) - placesTold; more > 0 {
				text += fmt.Sprintf(" and %d more", more)
			}
			results = append(results, Result{Name: f.name, Status: f.status, Detail: text + ": " + f.what, Remedy: f.remedy})
		}
	}
	good := []Result{
		ok("process", "%s with %s, %s in memory", number(len(s.tree), "process"), number(s.threads, "thread"), size(s.resident)),
		ok("descriptor", "%s, all of kinds that can be dumped", number(s.descriptors, "descriptor")),
		ok("socket", "%s, all of kinds that can be dumped", number(s.countSockets(), "socket")),
	}
	for _, r := range good {
		if r.Name == "process" || !slices.ContainsFunc(results, func(bad Result) bool { return bad.Name == r.Name }) {
			results = append(results, r)
		}
	}
	return results
}

// lookAtRoot looks at what concerns the tree as a whole.
func (s *survey) lookAtRoot() {
	root := s.root
	switch {
	case root.PID == 1:
		s.note(Fail, "process", "it is what this machine runs under", "choose one of its services", at(root))
	case root.Zombie():
		s.note(Fail, "process", fmt.Sprintf("it has ended, and its parent %d has not collected it", root.PPID), "dump a process that runs", at(root))
	}
	var err error
	if s.ours, err = proc.Namespaces(os.Getpid()); err != nil {
		s.ours = nil
	}
	if s.roots, err = proc.Namespaces(root.PID); err != nil {
		s.roots = nil
		return
	}
	if s.roots["pid"] != s.ours["pid"] && root.NSPID != 1 {
		s.note(Fail, "namespace", "it lives in a pid namespace, and is not its process 1", "dump the process 1 of that namespace, or run Stasis inside", at(root))
	}
	if s.roots["mnt"] != s.ours["mnt"] {
		s.note(Warn, "namespace", "it has mounts of its own", "restore with --root and the folder that holds its root; name mounts from outside with --external mnt[PATH]:NAME", at(root))
	}
}

// lookAtZombie: a zombie is dumped and restored as one, unless it is none.
func (s *survey) lookAtZombie(t *proc.Task) {
	if len(t.Threads) > 1 {
		s.note(Fail, "process", "its first thread has ended while others run", "no tool can dump that: restart the program", at(t))
	}
}

func (s *survey) look(t *proc.Task) error {
	s.threads += len(t.Threads)
	s.resident += t.ResidentKB << 10
	s.lookAtTask(t)
	s.lookAtSession(t)
	namespaces, err := proc.Namespaces(t.PID)
	if err != nil {
		return err
	}
	s.lookAtNamespaces(t, namespaces)
	if err := s.lookAtMappings(t, namespaces["ipc"]); err != nil {
		return err
	}
	return s.lookAtDescriptors(t, namespaces)
}

func (s *survey) lookAtTask(t *proc.Task) {
	if t.TracerPID != 0 {
		tracer := "gone"
		if other, err := proc.ReadTask(t.TracerPID); err == nil {
			tracer = other.Comm
		}
		s.note(Fail, "tracer", fmt.Sprintf("process %d (%s) traces it", t.TracerPID, tracer), "end that debugger before the dump", at(t))
	}
	if same, err := proc.SameMemory(t.PID, t.PPID); err == nil && same {
		s.note(Fail, "process", fmt.Sprintf("it shares its memory with its parent %d (CLONE_VM, or vfork for a moment)", t.PPID),
			"no tool can dump that, unless it lasts for a moment only", at(t))
	}
	if t.State == 'D' {
		s.note(Warn, "process", "it sleeps in the kernel (state D) and cannot be stopped as long as that lasts",
			"see to the disk or network that it waits for; --timeout gives more time", at(t))
	}
	if t.UID != os.Geteuid() && !hasCapability(unix.CAP_SYS_RESOURCE) {
		s.note(Fail, "rights", fmt.Sprintf("it belongs to user %d, whose limits cannot be read without CAP_SYS_RESOURCE", t.UID),
			"run Stasis as root with all capabilities", at(t))
	}
	if is32Bit(t.PID) {
		s.note(Warn, "process", "it is a 32-bit program: its memory is copied while it stands still", "use a 64-bit build, if there is one", at(t))
	}
	if features, err := proc.ThreadFeatures(t.PID); err == nil && slices.Contains(features, "shstk") {
		s.note(Warn, "process", "it has a shadow stack, which can be restored on a kernel and CPU with shadow stacks only",
			"start it with GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK, or restore on a machine like this", at(t))
	}
}

// is32Bit reads the class of the executable.
func is32Bit(pid int) bool {
	file, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	defer file.Close()
	head := make([]byte, 5)
	if _, err := file.ReadAt(head, 0); err != nil {
		return false
	}
	return string(head) == "\x7fELF\x01"
}

// lookAtSession: CRIU restores sessions whose leader is in the tree, and can
// put the tree into that of a shell.
func (s *survey) lookAtSession(t *proc.Task) {
	if s.pids[t.SID] {
		return
	}
	what := fmt.Sprintf("the leader of its session, %d, is outside of the tree", t.SID)
	if leader, err := proc.ReadTask(t.SID); err == nil {
		what = fmt.Sprintf("the leader of its session, %d (%s), is outside of the tree", t.SID, leader.Comm)
	}
	s.note(Warn, "session", what, "dump and restore with --shell-job", at(t))
}

// sharedByTree are the namespaces that CRIU takes for a tree as a whole.
var sharedByTree = []string{"cgroup", "ipc", "pid", "time", "user", "uts"}

func (s *survey) lookAtNamespaces(t *proc.Task, namespaces map[string]string) {
	for _, kind := range sharedByTree {
		theirs, roots := namespaces[kind], s.roots[kind]
		if theirs != "" && roots != "" && theirs != roots { // one that is ending has none
			s.note(Fail, "namespace", "it has a namespace that the root of the tree does not share: "+kind, "dump it alone, or the tree without it", at(t))
		}
	}
}

// lookAtMappings looks for memory that CRIU cannot dump.
func (s *survey) lookAtMappings(t *proc.Task, ipc string) error {
	maps, err := proc.Maps(t.PID)
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for i := range maps {
		m := &maps[i]
		if seen[m.Path] {
			continue
		}
		seen[m.Path] = true
		switch {
		case m.Path == "[uprobes]":
			s.note(Warn, "mapping", "a tracer has put probes into it", "end the tracer (bpftrace, perf), or dump and restore with --criu-opt allow-uprobes", at(t))
		case strings.HasPrefix(m.Path, "/secretmem"):
			s.note(Fail, "mapping", "it has secret memory (memfd_secret), which nobody else may read", "let the program free it before the dump", at(t))
		case strings.HasPrefix(m.Path, "anon_inode:"):
			if known := knownObject(m.Path); known.status != "" {
				s.note(known.status, "mapping", "it has mapped "+known.what, known.remedy, at(t))
			}
		case m.Kind() == "sysv-shm" && ipc == s.ours["ipc"]:
			s.note(Fail, "mapping", "it uses System V shared memory of the whole machine",
				"start it in an IPC namespace of its own (unshare --ipc), or let it use POSIX shared memory", at(t))
		case strings.HasPrefix(m.Path, "/dev/") && !strings.HasPrefix(m.Path, "/dev/shm/") && m.Path != "/dev/zero" && isDevice(t.PID, m):
			s.note(Fail, "mapping", "it has mapped the device "+m.Path, "start it without that device, or use CRIU's plugin for it", at(t))
		}
	}
	return nil
}

func isDevice(pid int, m *proc.Mapping) bool {
	st, err := proc.StatMapping(pid, *m)
	zero := unix.Major(st.Rdev) == memMajor && unix.Minor(st.Rdev) == 5
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && !zero
}
