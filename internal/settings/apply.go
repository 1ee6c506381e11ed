package settings

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
)

// Applier puts settings back into the processes of one restored tree, and
// collects what could not be.
type Applier struct {
	notes map[string]*note // by what is to be said
	order []*note
}

// note is what is to be said of one thread or more.
type note struct {
	what  string
	first int // thread
	count int
}

// Apply gives a process that does not run yet what it had. The task is as it is
// now, so that its numbers are those of this machine.
func (a *Applier) Apply(task *proc.Task, s *image.Settings) {
	filter := uint64(defaultFilter)
	if s.CoredumpFilter != nil {
		filter = uint64(*s.CoredumpFilter)
	}
	if now, err := number(task.PID, "coredump_filter", 16); err == nil && now != filter {
		a.say(task.PID, "its core dump filter", write(task.PID, "coredump_filter", "0x"+strconv.FormatUint(filter, 16)))
	}
	if s.AutogroupNice != autogroup(task.PID) {
		// A process that is not alone in its session writes what others wrote.
		a.say(task.PID, "the nice value of its session", write(task.PID, "autogroup", strconv.Itoa(s.AutogroupNice)))
	}
	unusual := byTID(s)
	for _, tid := range task.Threads {
		a.thread(tid, unusual[Inside(task, tid)])
	}
}

func byTID(s *image.Settings) map[int]image.ThreadSettings {
	threads := make(map[int]image.ThreadSettings, len(s.Threads))
	for _, t := range s.Threads {
		threads[t.TID] = t
	}
	return threads
}

func (a *Applier) thread(tid int, want image.ThreadSettings) {
	if want.TimerSlackNS == 0 {
		want.TimerSlackNS = defaultSlack
	}
	if now, err := number(tid, "timerslack_ns", 10); err == nil && now != 0 && now != want.TimerSlackNS {
		a.say(tid, "its timer slack", write(tid, "timerslack_ns", strconv.FormatUint(want.TimerSlackNS, 10)))
	}
	attributes, err := unix.SchedGetAttr(tid, 0)
	if err == nil {
		a.scheduling(tid, attributes, &want)
	}
	if now, err := ioPriority(tid); err == nil && now != want.IOPriority && (want.IOPriority != 0 || !implied(now, attributes)) {
		a.say(tid, "its I/O priority", setIOPriority(tid, want.IOPriority))
	}
	if want.CPUs != "" {
		a.bind(tid, want.CPUs)
	}
}

// scheduling puts back what a thread asked of the scheduler.
func (a *Applier) scheduling(tid int, now *unix.SchedAttr, want *image.ThreadSettings) {
	switch {
	case want.Deadline != nil:
		d := want.Deadline
		a.say(tid, "its deadline (SCHED_DEADLINE)", unix.SchedSetAttr(tid, &unix.SchedAttr{
			Size: unix.SizeofSchedAttr, Policy: policyDeadline, Flags: d.Flags,
			Runtime: d.RuntimeNS, Deadline: d.DeadlineNS, Period: d.PeriodNS,
		}, 0))
	case want.SliceNS != 0 && want.SliceNS != now.Runtime && (now.Policy == unix.SCHED_NORMAL || now.Policy == unix.SCHED_BATCH):
		a.say(tid, "its time slice", unix.SchedSetAttr(tid, &unix.SchedAttr{
			Size: unix.SizeofSchedAttr, Policy: now.Policy, Flags: now.Flags & resetOnFork, Nice: now.Nice, Runtime: want.SliceNS,
		}, 0))
	}
}

// bind binds a thread to the CPUs that it was bound to, as far as they are here.
func (a *Applier) bind(tid int, cpus string) {
	set, err := parseCPUs(cpus)
	if err == nil {
		err = unix.SchedSetaffinity(tid, &set)
	}
	if errors.Is(err, unix.EINVAL) {
		err = errors.New("it was bound to " + cpus + ", and may use none of them here")
	}
	if err != nil {
		a.say(tid, "the CPUs that it is bound to", err)
		return
	}
	var now unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &now); err == nil && now != set {
		a.note(tid, fmt.Sprintf("bound to CPUs %s, of %s that it was bound to: it may not use the others here", formatCPUs(&now), cpus))
	}
}

// say notes an error, except that of a thread that is gone.
func (a *Applier) say(tid int, what string, err error) {
	if err == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		return
	}
	a.note(tid, fmt.Sprintf("%s could not be put back: %v", what, err))
}

func (a *Applier) note(tid int, what string) {
	if a.notes == nil {
		a.notes = make(map[string]*note)
	}
	n := a.notes[what]
	if n == nil {
		n = &note{what: what, first: tid}
		a.notes[what] = n
		a.order = append(a.order, n)
	}
	n.count++
}

// Notes are what could not be put back, for people, each thing once.
func (a *Applier) Notes() []string {
	var list []string
	for _, n := range a.order {
		who := fmt.Sprintf("thread %d", n.first)
		if n.count > 1 {
			who += fmt.Sprintf(" and %d more", n.count-1)
		}
		list = append(list, who+": "+n.what)
	}
	return list
}

// Personality is that of a thread, by the number that it has inside.
func Personality(s *image.Settings, inside int) uint32 { return byTID(s)[inside].Personality }

// HasPersonality says whether any thread of a process has a personality that is
// not that of other programs.
func HasPersonality(s *image.Settings) bool {
	return slices.ContainsFunc(s.Threads, func(t image.ThreadSettings) bool { return t.Personality != 0 })
}

// SetPersonality gives a thread its personality by a system call in it.
func (a *Applier) SetPersonality(tid int, want uint32, call func(number uintptr, args ...uint64) (uint64, error)) {
	now, err := number(tid, "personality", 16)
	if err != nil || uint32(now) == want {
		return
	}
	_, err = call(unix.SYS_PERSONALITY, uint64(want))
	a.say(tid, "its personality", err)
}
