// Package settings keeps what CRIU does not keep of processes and threads: which
// CPUs they are bound to, timer slack, I/O priority, time slice and deadline,
// personality, the core dump filter, the nice value of the autogroup, and which
// eventfds are semaphores.
//
// [Looker.Look] reads them from a frozen process; [Applier.Apply] puts them back into a
// restored one that does not run yet. All of it works from outside, but for the
// personality, which a thread can only set itself ([Applier.SetPersonality]).
//
// What nobody changed is not noted, so that a tree gets the CPUs of another
// machine and not those of the old one. Nothing here fails a dump or a restore:
// what cannot be read is not noted, and what cannot be put back is said.
//
// A Looker may be used by any number of goroutines, an Applier by one at a time.
package settings

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stasis/internal/proc"
)

// What a process has that nobody changed.
const (
	defaultFilter = 0x33  // MMF_DUMP_FILTER_DEFAULT, with ELF headers
	defaultSlack  = 50000 // nanoseconds: init_task in the kernel
)

const (
	policyDeadline = 6  // SCHED_DEADLINE
	resetOnFork    = 1  // SCHED_FLAG_RESET_ON_FORK
	ioWhoProcess   = 1  // IOPRIO_WHO_PROCESS
	ioClassShift   = 13 // IOPRIO_CLASS_SHIFT
	ioBestEffort   = 2  // IOPRIO_CLASS_BE
)

// file is the path of a file about a process or thread in /proc.
func file(id int, name string) string { return "/proc/" + strconv.Itoa(id) + "/" + name }

// number reads a file of /proc that holds one number in some base.
func number(id int, name string, base int) (uint64, error) {
	raw, err := os.ReadFile(file(id, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(bytes.TrimSpace(raw)), base, 64)
}

func write(id int, name, text string) error {
	return os.WriteFile(file(id, name), []byte(text), 0)
}

func ioPriority(tid int) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioWhoProcess, uintptr(tid), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func setIOPriority(tid, priority int) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioWhoProcess, uintptr(tid), uintptr(priority)); errno != 0 {
		return errno
	}
	return nil
}

// autogroup is the nice value of the group of a process' session; 0 where the
// kernel has no such groups.
func autogroup(pid int) int {
	raw, err := os.ReadFile(file(pid, "autogroup"))
	if err != nil {
		return 0
	}
	_, nice, _ := strings.Cut(string(raw), " nice ")
	n, err := strconv.Atoi(strings.TrimSpace(nice))
	if err != nil {
		return 0
	}
	return n
}

// formatCPUs lists the CPUs of a set as taskset(1) does: "0-3,8".
func formatCPUs(set *unix.CPUSet) string {
	var list []string
	for cpu := 0; cpu < maxCPUs; cpu++ {
		if !set.IsSet(cpu) {
			continue
		}
		last := cpu
		for last+1 < maxCPUs && set.IsSet(last+1) {
			last++
		}
		if last == cpu {
			list = append(list, strconv.Itoa(cpu))
		} else {
			list = append(list, fmt.Sprintf("%d-%d", cpu, last))
		}
		cpu = last
	}
	return strings.Join(list, ",")
}

// maxCPUs is how many CPUs a unix.CPUSet has room for.
const maxCPUs = 1024

// parseCPUs reads a list of CPUs. Those that no set has room for are left out.
func parseCPUs(list string) (set unix.CPUSet, err error) {
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 31)
		if err != nil {
			return set, fmt.Errorf("list of CPUs %q: %w", list, err)
		}
		last, err := strconv.ParseUint(to, 10, 31)
		if err != nil {
			return set, fmt.Errorf("list of CPUs %q: %w", list, err)
		}
		for cpu := first; cpu <= last && cpu < maxCPUs; cpu++ {
			set.Set(int(cpu))
		}
	}
	return set, nil
}

// Inside is the number that a process knows one of its threads by.
func Inside(task *proc.Task, tid int) int {
	if task.NSPID == task.PID {
		return tid
	}
	if inside := proc.NumbersInside([]int{tid}); len(inside) == 1 {
		return inside[0]
	}
	return 0
}
