package settings

import (
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
)

// Looker reads the settings of the processes of one tree.
type Looker struct {
	slice uint64 // what the kernel gives to who did not ask

	mu   sync.Mutex
	free map[string]unix.CPUSet // what threads that nobody bound may run on, by control group; guarded by mu
}

// NewLooker begins to look at a tree.
func NewLooker() *Looker {
	l := &Looker{free: make(map[string]unix.CPUSet)}
	if own, err := unix.SchedGetAttr(0, 0); err == nil {
		l.slice = own.Runtime
	}
	return l
}

// Look reads the settings of a process that stands still. It returns nil for one
// that is not there any more.
func (l *Looker) Look(task *proc.Task) *image.Settings {
	if task.Zombie() {
		return nil
	}
	s := &image.Settings{AutogroupNice: autogroup(task.PID)}
	filter, err := number(task.PID, "coredump_filter", 16)
	if err == nil && filter != defaultFilter {
		bits := uint32(filter)
		s.CoredumpFilter = &bits
	}
	s.Semaphores = semaphores(task.PID)

	free := l.freeCPUs(task.PID)
	for _, tid := range task.Threads {
		t := l.thread(tid, free)
		t.TID = Inside(task, tid)
		if t != (image.ThreadSettings{TID: t.TID}) {
			s.Threads = append(s.Threads, t)
		}
	}
	return s
}

// thread reads what is unusual about one thread.
func (l *Looker) thread(tid int, free *unix.CPUSet) (t image.ThreadSettings) {
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &cpus); err == nil && !contains(&cpus, free) {
		t.CPUs = formatCPUs(&cpus)
	}
	// A real-time thread has none.
	if slack, err := number(tid, "timerslack_ns", 10); err == nil && slack != 0 && slack != defaultSlack {
		t.TimerSlackNS = slack
	}
	attributes, err := unix.SchedGetAttr(tid, 0)
	if err == nil {
		t.SliceNS, t.Deadline = l.scheduling(attributes)
	}
	if priority, err := ioPriority(tid); err == nil && !implied(priority, attributes) {
		t.IOPriority = priority
	}
	if personality, err := number(tid, "personality", 16); err == nil {
		t.Personality = uint32(personality)
	}
	return t
}

// scheduling is what sched_setattr(2) knows and CRIU does not.
func (l *Looker) scheduling(a *unix.SchedAttr) (slice uint64, deadline *image.Deadline) {
	switch a.Policy {
	case policyDeadline:
		return 0, &image.Deadline{RuntimeNS: a.Runtime, DeadlineNS: a.Deadline, PeriodNS: a.Period, Flags: a.Flags}
	case unix.SCHED_NORMAL, unix.SCHED_BATCH:
		if a.Runtime != l.slice {
			return a.Runtime, nil
		}
	}
	return 0, nil
}

// implied says whether an I/O priority is what a thread has that never set one.
// Some kernels tell that as none, some as what follows from the nice value.
func implied(priority int, a *unix.SchedAttr) bool {
	class := priority >> ioClassShift & 7
	return class == 0 || a != nil && priority == ioBestEffort<<ioClassShift|(int(a.Nice)+20)/5
}

// freeCPUs are the CPUs that a thread of a process may run on if nobody bound
// it: all of the machine, or of its control group.
func (l *Looker) freeCPUs(pid int) *unix.CPUSet {
	l.mu.Lock()
	defer l.mu.Unlock()
	raw, _ := os.ReadFile(file(pid, "cgroup"))
	set, known := l.free[string(raw)]
	if !known {
		set = groupCPUs(string(raw))
		l.free[string(raw)] = set
	}
	return &set
}

// groupCPUs are the CPUs of a control group, given as /proc/PID/cgroup, or of
// the machine.
func groupCPUs(groups string) unix.CPUSet {
	for line := range strings.Lines(groups) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		top, name := "/sys/fs/cgroup", "cpuset.cpus.effective"
		switch parts[1] {
		case "":
		case "cpuset":
			top, name = "/sys/fs/cgroup/cpuset", "cpuset.effective_cpus"
		default:
			continue
		}
		// A group without the controller has what its parent has.
		for folder := filepath.Join(top, parts[2]); strings.HasPrefix(folder, top); folder = filepath.Dir(folder) {
			raw, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil {
				continue
			}
			if set, err := parseCPUs(string(raw)); err == nil && set.Count() > 0 {
				return set
			}
		}
	}
	raw, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return unix.CPUSet{}
	}
	set, err := parseCPUs(string(raw))
	if err != nil {
		return unix.CPUSet{}
	}
	return set
}

// contains says whether a has all CPUs of b.
func contains(a, b *unix.CPUSet) bool {
	for i := range b {
		if b[i]&^a[i] != 0 {
			return false
		}
	}
	return true
}

// semaphores lists the descriptors of a process that are eventfds which count
// down by one. Kernels before 6.11 do not tell.
func semaphores(pid int) (list []int) {
	files, err := proc.OpenFiles(pid)
	if err != nil {
		return nil
	}
	defer files.Close()
	descriptors, err := files.List()
	if err != nil {
		return nil
	}
	for _, d := range descriptors {
		if d.Target != "anon_inode:[eventfd]" {
			continue
		}
		if info, err := files.Info(d.FD); err == nil && info.Semaphore {
			list = append(list, d.FD)
		}
	}
	return list
}
