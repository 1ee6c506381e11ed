package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Task is one process as /proc describes it.
type Task struct {
	PID, PPID  int
	PGID, SID  int
	Comm       string // at most 15 bytes, as the kernel keeps it
	Exe        string // path of the executable; empty for a zombie or kernel thread
	Cmdline    []string
	State      byte   // R, S, D, T (stopped), t (traced), Z (zombie), …
	StartTime  uint64 // clock ticks since boot: with the PID it names one process for good
	Threads    []int  // thread ids, the leader (== PID) first
	TracerPID  int    // 0 when nobody traces it
	UID        int    // real user id
	NSPID      int    // its pid in the innermost pid namespace
	LockedKB   uint64 // VmLck, KiB
	SwapKB     uint64 // VmSwap, KiB
	ResidentKB uint64 // VmRSS, KiB
	Seccomp    int    // 0 none, 1 strict, 2 filter
}

// Zombie says that the process has ended and waits for its parent.
func (t *Task) Zombie() bool { return t.State == 'Z' || t.State == 'X' }

// ReadTask describes one process.
func ReadTask(pid int) (*Task, error) {
	stat, err := readFile(pid, "stat")
	if err != nil {
		return nil, err
	}
	task, err := parseStat(stat)
	if err != nil {
		return nil, fmt.Errorf("read stat of process %d: %w", pid, err)
	}
	status, err := readFile(pid, "status")
	if err != nil {
		return nil, err
	}
	task.applyStatus(string(status))
	// A zombie has neither; that is no error.
	task.Exe, _ = os.Readlink(path(pid, "exe"))
	if raw, err := os.ReadFile(path(pid, "cmdline")); err == nil && len(raw) > 0 {
		task.Cmdline = strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
	}
	if task.Threads, err = Threads(pid); err != nil {
		return nil, err
	}
	return task, nil
}

// parseStat reads /proc/PID/stat. The command may hold spaces and brackets,
// so the fields are counted from its last closing bracket.
func parseStat(stat []byte) (*Task, error) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return nil, errors.New("no command in brackets")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(stat[:open])))
	if err != nil {
		return nil, err
	}
	rest := strings.Fields(string(stat[end+1:]))
	if len(rest) < 20 {
		return nil, fmt.Errorf("%d fields where at least 20 belong", len(rest))
	}
	t := &Task{PID: pid, Comm: string(stat[open+1 : end]), State: rest[0][0], NSPID: pid}
	for i, into := range []*int{&t.PPID, &t.PGID, &t.SID} {
		if *into, err = strconv.Atoi(rest[1+i]); err != nil {
			return nil, err
		}
	}
	t.StartTime, err = strconv.ParseUint(rest[19], 10, 64)
	return t, err
}

func (t *Task) applyStatus(status string) {
	for line := range strings.Lines(status) {
		key, value, ok := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if !ok || len(fields) == 0 {
			continue
		}
		number, _ := strconv.ParseUint(fields[0], 10, 64)
		switch key {
		case "TracerPid":
			t.TracerPID = int(number)
		case "Uid":
			t.UID = int(number)
		case "VmLck":
			t.LockedKB = number
		case "VmSwap":
			t.SwapKB = number
		case "VmRSS":
			t.ResidentKB = number
		case "Seccomp":
			t.Seccomp = int(number)
		case "NSpid":
			t.NSPID, _ = strconv.Atoi(fields[len(fields)-1])
		}
	}
}

// Threads lists the threads of a process, its first one at the front. One that
// has ended may be among them.
func Threads(pid int) ([]int, error) {
	names, err := os.ReadDir(path(pid, "task"))
	if err != nil {
		return nil, gone(pid, "task", err)
	}
	ids := make([]int, 0, len(names))
	for _, name := range names {
		if id, err := strconv.Atoi(name.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] == pid || ids[j] != pid && ids[i] < ids[j] })
	return ids, nil
}

// States are the states of the threads of a process, as in [Task]; none when it is gone.
func States(pid int) []byte {
	tids, err := Threads(pid)
	if err != nil {
		return nil
	}
	states := make([]byte, 0, len(tids))
	for _, tid := range tids {
		stat, err := readFile(pid, filepath.Join("task", strconv.Itoa(tid), "stat"))
		if err != nil {
			continue // it has ended
		}
		if t, err := parseStat(stat); err == nil {
			states = append(states, t.State)
		}
	}
	return states
}

// Children lists the direct children of a process, of all its threads.
func Children(pid int) ([]int, error) {
	tids, err := Threads(pid)
	if err != nil {
		return nil, err
	}
	var children []int
	for _, tid := range tids {
		raw, err := readFile(pid, filepath.Join("task", strconv.Itoa(tid), "children"))
		if errors.Is(err, ErrGone) {
			continue // the thread has just ended; its children have gone to another
		}
		if err != nil {
			return nil, err
		}
		for _, field := range strings.Fields(string(raw)) {
			if child, err := strconv.Atoi(field); err == nil {
				children = append(children, child)
			}
		}
	}
	return children, nil
}

// Tree lists a process and all its descendants, parents before children. A
// descendant that ends while the tree is read is left out; when the root has
// ended the error wraps [ErrGone]. A descendant that cannot be read for another
// reason, such as too many open files, is an error: nobody is left out in silence.
func Tree(root int) ([]*Task, error) {
	task, err := ReadTask(root)
	if err != nil {
		return nil, err
	}
	tree := []*Task{task}
	for i := 0; i < len(tree); i++ {
		children, err := Children(tree[i].PID)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, pid := range children {
			child, err := ReadTask(pid)
			if errors.Is(err, ErrGone) {
				continue
			}
			if err != nil {
				return nil, err
			}
			tree = append(tree, child)
		}
	}
	return tree, nil
}

const kcmpVM = 1 // KCMP_VM of kcmp(2)

// SameMemory says whether two processes have one address space, as a child of
// vfork(2) has until it executes a program, and one of clone(2) with CLONE_VM for
// good. A process that is gone, or that may not be looked at, has another: all that
// share one are alike in that. It is an error where the kernel cannot tell
// (CONFIG_KCMP).
func SameMemory(pid, other int) (bool, error) {
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(other), kcmpVM, 0, 0, 0)
	if errno == unix.ENOSYS {
		return false, errors.New("kcmp(2) is not in this kernel (CONFIG_KCMP)")
	}
	return errno == 0 && order == 0, nil
}

// Pinned is how much memory, in bytes, of a process cannot move because something
// that is no program, such as a device or an io_uring, uses its pages (VmPin).
func Pinned(pid int) (uint64, error) {
	value, err := statusField(pid, "VmPin")
	if err != nil || value == "" { // a zombie has none
		return 0, err
	}
	kib, err := strconv.ParseUint(strings.TrimSuffix(value, " kB"), 10, 64)
	return kib << 10, err
}

// ThreadGroup is the pid of the process that a thread belongs to.
func ThreadGroup(tid int) (int, error) {
	status, err := readFile(tid, "status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("/proc/%d/status names no process", tid)
}
