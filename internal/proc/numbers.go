package proc

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Use says why a pid cannot be given to a new process.
type Use string

// The uses of a pid.
const (
	UseProcess Use = "process" // a process has it
	UseThread  Use = "thread"  // a thread of a process has it
	UseGroup   Use = "group"   // processes are in the process group of that number, whose leader has ended
	UseSession Use = "session" // processes are in the session of that number, whose leader has ended
	UseEnded   Use = "ended"   // nobody has it, but the kernel is not yet done with who had
)

// Holder is who keeps a pid in use.
type Holder struct {
	Number int    // the pid in question
	Use    Use    // what it is
	PID    int    // the process
	Comm   string // its name
	Parent int    // its parent
	Dying  bool   // it has been killed or has ended; its parent has not looked yet
}

// Holders finds who holds the given numbers in the pid namespace of the calling
// process, in their order. A number is free if and only if no process or thread
// has it and no process is in a group or session of that number.
func Holders(numbers []int) ([]Holder, error) {
	taken, err := held(numbers)
	if err == nil && len(taken) == 0 {
		return nil, nil
	}
	sure := err == nil
	if sure {
		numbers = taken
	}
	byNumber := make(map[int]Holder, len(numbers))
	wanted := make(map[int]bool, len(numbers))
	for _, n := range numbers {
		wanted[n] = true
	}
	all, err := All()
	if err != nil {
		return nil, err
	}
	for _, pid := range all {
		claim(byNumber, wanted, pid)
	}
	var holders []Holder
	for _, n := range numbers {
		h, found := byNumber[n]
		if !found {
			h, found = threadHolder(n)
		}
		switch {
		case found:
			holders = append(holders, h.named())
		case sure:
			holders = append(holders, Holder{Number: n, Use: UseEnded, Comm: "ended just now", Dying: true})
		}
	}
	return holders, nil
}

// All lists the pids of all processes that this one can see.
func All() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// claim notes the numbers that a process holds. Being the process of that
// number counts for more than being in its group or session.
func claim(byNumber map[int]Holder, wanted map[int]bool, pid int) {
	note := func(n int, use Use) {
		if !wanted[n] {
			return
		}
		if _, known := byNumber[n]; !known || use == UseProcess {
			byNumber[n] = Holder{Number: n, Use: use, PID: pid}
		}
	}
	note(pid, UseProcess)
	if group, err := unix.Getpgid(pid); err == nil && group != pid {
		note(group, UseGroup)
	}
	if session, err := unix.Getsid(pid); err == nil && session != pid {
		note(session, UseSession)
	}
}

// threadHolder looks for a thread, which has a folder in /proc that is not
// listed there.
func threadHolder(tid int) (Holder, bool) {
	owner, err := statusField(tid, "Tgid")
	if err != nil {
		return Holder{}, false
	}
	pid, err := strconv.Atoi(owner)
	if err != nil {
		return Holder{}, false
	}
	if pid == tid { // a process that began after the list was read
		return Holder{Number: tid, Use: UseProcess, PID: pid}, true
	}
	return Holder{Number: tid, Use: UseThread, PID: pid}, true
}

// named fills in what there is to say about the process.
func (h Holder) named() Holder {
	stat, err := readFile(h.PID, "stat")
	if err != nil {
		h.Comm, h.Dying = "ended just now", true
		return h
	}
	h.Dying = exiting(stat)
	raw, err := readFile(h.PID, "status")
	if err != nil {
		h.Comm, h.Dying = "ended just now", true
		return h
	}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Name":
			h.Comm = value
		case "PPid":
			h.Parent, _ = strconv.Atoi(value)
		case "State":
			h.Dying = h.Dying || strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X")
		case "SigPnd", "ShdPnd":
			pending, _ := strconv.ParseUint(value, 16, 64)
			h.Dying = h.Dying || pending&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return h
}

// flagExiting is PF_EXITING of linux/sched.h: the memory of a large process
// takes a while to free, and it is no zombie until then.
const flagExiting = 1 << 2

// exiting says whether /proc/PID/stat is that of a process on its way out. Its
// seventh field behind the name is the kernel's flags.
func exiting(stat []byte) bool {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err == nil && flags&flagExiting != 0
}
