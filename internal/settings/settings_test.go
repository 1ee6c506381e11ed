package settings

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
)

func TestLists(t *testing.T) {
	for _, list := range []string{"0", "0-3", "0-3,8", "1,3,5-7,1023", "0-1023"} {
		set, err := parseCPUs(list)
		if err != nil {
			t.Fatalf("%s: %v", list, err)
		}
		if got := formatCPUs(&set); got != list {
			t.Errorf("%s came back as %s", list, got)
		}
	}
	for _, bad := range []string{"", "x", "1-", "-1", "3,", "99999999999"} {
		if set, err := parseCPUs(bad); err == nil {
			t.Errorf("%q was taken for %s", bad, formatCPUs(&set))
		}
	}
	if set, err := parseCPUs("3-100000"); err != nil || set.Count() != maxCPUs-3 {
		t.Errorf("CPUs that no set has room for: %d, %v", set.Count(), err)
	}
}

// sleeper is a process that does nothing.
func sleeper(t *testing.T) *proc.Task {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	task, err := proc.ReadTask(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// look reads all settings but the CPUs: whoever runs the tests may be bound.
func look(task *proc.Task) *image.Settings {
	s := NewLooker().Look(task)
	var threads []image.ThreadSettings
	for _, t := range s.Threads {
		if t.CPUs = ""; t != (image.ThreadSettings{TID: t.TID}) {
			threads = append(threads, t)
		}
	}
	s.Threads = threads
	return s
}

func TestWhatNobodyChangedIsNotNoted(t *testing.T) {
	task := sleeper(t)
	new(Applier).Apply(task, &image.Settings{}) // whoever runs the tests may have changed something
	if s := look(task); len(s.Threads) != 0 || s.CoredumpFilter != nil || s.Semaphores != nil {
		t.Errorf("a plain process has %+v", s)
	}
}

// TestCPUsThatAreNotHere: a thread is bound to what there is, and it is said.
func TestCPUsThatAreNotHere(t *testing.T) {
	task := sleeper(t)
	var before, now unix.CPUSet
	if err := unix.SchedGetaffinity(task.PID, &before); err != nil {
		t.Fatal(err)
	}
	first := 0
	for !before.IsSet(first) {
		first++
	}
	one := strconv.Itoa(first)
	for _, c := range []struct {
		cpus, note string
		bound      bool
	}{
		{"1000-1001", "none of them", false},
		{one + ",1000-1001", "may not use the others", true},
		{one, "", true},
	} {
		var a Applier
		a.Apply(task, &image.Settings{Threads: []image.ThreadSettings{{TID: task.PID, CPUs: c.cpus}}})
		notes := strings.Join(a.Notes(), "; ")
		if !strings.Contains(notes, c.note) || c.note == "" && notes != "" {
			t.Errorf("CPUs %s: notes %q, want %q", c.cpus, notes, c.note)
		}
		if err := unix.SchedGetaffinity(task.PID, &now); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{false: before.Count(), true: 1}[c.bound]; now.Count() != want {
			t.Errorf("CPUs %s: it may run on %d CPUs, should be %d", c.cpus, now.Count(), want)
		}
	}
}

// TestApplyIsWhatLookSaw puts settings into one process and wants to read the
// same from it.
func TestApplyIsWhatLookSaw(t *testing.T) {
	task := sleeper(t)
	filter := uint32(0x17)
	want := image.Settings{CoredumpFilter: &filter, Threads: []image.ThreadSettings{{
		TID: task.PID, TimerSlackNS: 123456, IOPriority: ioBestEffort<<ioClassShift | 7,
	}}}
	var a Applier
	a.Apply(task, &want)
	got := look(task)
	if got.CoredumpFilter == nil || *got.CoredumpFilter != filter || len(got.Threads) != 1 || got.Threads[0] != want.Threads[0] {
		t.Errorf("it has %+v after %+v was applied; notes %q", got, want, a.Notes())
	}
	// And back: who is not listed gets what nobody changed.
	a.Apply(task, &image.Settings{})
	if got := look(task); got.CoredumpFilter != nil || len(got.Threads) != 0 {
		t.Errorf("it has %+v, should have what nobody changed; notes %q", got, a.Notes())
	}
}

// TestGone: a process that ends meanwhile is no matter.
func TestGone(t *testing.T) {
	task := &proc.Task{PID: 1 << 22, NSPID: 1 << 22, State: 'S', Threads: []int{1 << 22}}
	var a Applier
	a.Apply(task, &image.Settings{Threads: []image.ThreadSettings{{TID: task.PID, CPUs: "0", TimerSlackNS: 1}}})
	if notes := a.Notes(); len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
	if s := NewLooker().Look(task); s == nil || len(s.Threads) > 0 {
		t.Errorf("it has %+v", s)
	}
}
