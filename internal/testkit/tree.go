package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// goneWithin is how long a killed process may take to free its pid. Where the
// process that inherits orphans is slow to wait for them, that is seconds.
const goneWithin = 10 * time.Second

// stat is what /proc/PID/stat says, see proc_pid_stat(5).
type stat struct {
	pid, ppid, pgid, sid int
	comm                 string
	state                byte
	start                uint64 // clock ticks after boot: tells a process from a later one with its number
}

func readStat(pid int) (stat, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	fields := strings.Fields(string(line[end+1:]))
	if open < 0 || end < open || len(fields) < 20 {
		return stat{}, fmt.Errorf("/proc/%d/stat reads %q", pid, line)
	}
	s := stat{pid: pid, comm: string(line[open+1 : end]), state: fields[0][0]}
	s.ppid, _ = strconv.Atoi(fields[1])
	s.pgid, _ = strconv.Atoi(fields[2])
	s.sid, _ = strconv.Atoi(fields[3])
	s.start, _ = strconv.ParseUint(fields[19], 10, 64)
	return s, nil
}

// Tree lists a process and all its descendants, zombies included, parents
// before children. It is empty when there is no such process.
func Tree(root int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	alive := false
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil {
			children[s.ppid] = append(children[s.ppid], pid)
			alive = alive || pid == root
		}
	}
	if !alive {
		return nil
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		slices.Sort(children[tree[i]])
		tree = append(tree, children[tree[i]]...)
	}
	return tree
}

// nursery knows the processes whose deaths are ours to notice: those that were
// part of a program's tree when it was last looked at.
var nursery = struct {
	sync.Mutex
	start map[int]uint64          // pid to start time
	ended map[int]unix.WaitStatus // how those ended that were our children
	heirs map[int]bool            // sessions whose orphans are ours, known or not
	begin sync.Once
}{heirs: map[int]bool{}, start: map[int]uint64{}, ended: map[int]unix.WaitStatus{}}

// Watch makes this process reap the tree's processes as soon as they die, so
// that their pids are free for a restore. Call it after a start and after a
// restore; RoundTrip does.
func Watch(root int) {
	nursery.begin.Do(func() {
		// Orphans come to the nearest subreaper: this process.
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
		died := make(chan os.Signal, 1)
		signal.Notify(died, unix.SIGCHLD)
		go func() {
			for range died {
				reap()
			}
		}()
	})
	nursery.Lock()
	for _, pid := range Tree(root) {
		if s, err := readStat(pid); err == nil {
			nursery.start[pid] = s.start
			if s.state != 'Z' {
				delete(nursery.ended, pid) // that was an earlier one with its number
			}
		}
	}
	nursery.Unlock()
	reap() // the signal of one that is dead already has been
}

// WatchSession is Watch for a tree whose processes come and go: whatever is in
// the session that its root leads is waited for when it comes to us.
func WatchSession(root int) {
	Watch(root)
	nursery.Lock()
	defer nursery.Unlock()
	nursery.heirs[root] = true
}

// orphans notes the dead children of this process that nobody has seen before.
// The nursery is locked.
func orphans() {
	if len(nursery.heirs) == 0 {
		return
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil && s.state == 'Z' && s.ppid == os.Getpid() && nursery.heirs[s.sid] {
			nursery.start[pid] = s.start
		}
	}
}

// reap waits for those of the nursery that are dead and our children. It never
// touches another child, which somebody else waits for.
func reap() {
	nursery.Lock()
	defer nursery.Unlock()
	orphans()
	for pid, start := range nursery.start {
		s, err := readStat(pid)
		switch {
		case err != nil || s.start != start:
			delete(nursery.start, pid)
		case s.state == 'Z' && s.ppid == os.Getpid():
			var status unix.WaitStatus
			if got, _ := unix.Wait4(pid, &status, unix.WNOHANG, nil); got == pid {
				delete(nursery.start, pid)
				nursery.ended[pid] = status
			}
		}
	}
}

// alive returns an error if the process is dead, which says how it died.
func alive(pid int) error {
	if s, err := readStat(pid); err == nil && s.state != 'Z' {
		return nil
	}
	reap()
	nursery.Lock()
	defer nursery.Unlock()
	status, ours := nursery.ended[pid]
	switch {
	case !ours:
		return fmt.Errorf("process %d is dead", pid)
	case status.Signaled():
		return fmt.Errorf("process %d is dead, killed by signal %d (%v)", pid, status.Signal(), status.Signal())
	default:
		return fmt.Errorf("process %d is dead, it exited with %d", pid, status.ExitStatus())
	}
}

// HowIs tells whether a process is there, in which state, or how it ended, for the
// report of a failure.
func HowIs(pid int) string {
	if err := alive(pid); err != nil {
		return err.Error()
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "process %d is there", pid)
	for line := range strings.Lines(string(status)) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "State", "TracerPid", "Threads", "SigPnd", "ShdPnd", "SigBlk":
			fmt.Fprintf(&b, ", %s %s", key, strings.TrimSpace(value))
		}
	}
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, thread := range threads {
		where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/wchan", pid, thread.Name()))
		call, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/syscall", pid, thread.Name()))
		fmt.Fprintf(&b, "; thread %s at %s in system call %s", thread.Name(), where, bytes.TrimSpace(call))
	}
	return b.String()
}

// WaitGone waits until none of these processes exists any more, not even as a
// zombie.
func WaitGone(t T, pids []int) {
	t.Helper()
	for deadline := time.Now().Add(goneWithin); ; {
		reap()
		left := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool {
			_, err := readStat(pid)
			return err != nil
		})
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes %v are still there %v after their end", left, goneWithin)
		}
		time.Sleep(time.Millisecond)
	}
}

// halt stops the processes of a tree until no new ones come, so that it can be
// ended as a whole. It returns all of them.
func halt(root int) (tree []int) {
	stopped := map[int]bool{}
	for again := true; again; {
		again = false
		tree = Tree(root)
		for _, pid := range tree {
			if !stopped[pid] {
				stopped[pid], again = true, true
				_ = unix.Kill(pid, unix.SIGSTOP)
			}
		}
	}
	return tree
}

// Kill ends a tree with SIGKILL and waits until all its pids are free.
func Kill(t T, root int) {
	t.Helper()
	tree := halt(root)
	Watch(root)
	for _, pid := range tree {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Errorf("kill %d: %v", pid, err)
		}
	}
	WaitGone(t, tree)
}

// Shape describes a tree: for each process its number, parent, group, session,
// name, threads, and whether it is stopped or a zombie. Two shapes of the same
// tree are equal. The root's parent is left out: it changes with a restore.
func Shape(root int) string {
	var b strings.Builder
	for _, pid := range Tree(root) {
		s, err := readStat(pid)
		if err != nil {
			continue
		}
		if pid == root {
			s.ppid = 0
		}
		state := "runs"
		switch s.state {
		case 'T', 't':
			state = "stopped"
		case 'Z', 'X':
			state = "zombie"
		}
		fmt.Fprintf(&b, "%d %q parent %d group %d session %d %s, threads", pid, s.comm, s.ppid, s.pgid, s.sid, state)
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, task := range tasks {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/comm", pid, task.Name()))
			fmt.Fprintf(&b, " %s %q", task.Name(), bytes.TrimSpace(name))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// PSS is what a tree uses together, in KiB: each page is divided by the number
// of processes that have it (proc_pid_smaps(5)).
func PSS(t T, root int) int {
	t.Helper()
	sum := 0
	for _, pid := range Tree(root) {
		rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // a zombie
		}
		for line := range strings.Lines(string(rollup)) {
			if value, found := strings.CutPrefix(line, "Pss:"); found {
				kib, err := strconv.Atoi(strings.Fields(value)[0])
				if err != nil {
					t.Fatalf("smaps_rollup of %d: %v", pid, err)
				}
				sum += kib
			}
		}
	}
	return sum
}
