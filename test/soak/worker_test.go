package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/keeper"
	"stasis/internal/proc"
	"stasis/internal/testkit"
)

// patience bounds every wait.
const patience = 60 * time.Second

// workerVariable marks this test binary as a worker: a Stasis that can be killed.
const workerVariable = "STASIS_SOAK_WORKER"

// order is what a worker does: a dump or, without a PID, a restore.
type order struct {
	PID         int
	Dir, Parent string
	Track, Lazy bool
	Streams     int
	Compression string
}

// work says "go" as soon as there is something to kill.
func work(text string) {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	os.Unsetenv(workerVariable)
	begun := false
	at := func(step stasis.Step) error {
		if !begun && (step == stasis.StepArm || step == stasis.StepRestore) {
			begun = true
			fmt.Println("go")
		}
		return nil
	}
	var err error
	if o.PID != 0 {
		_, err = stasis.Dump(context.Background(), stasis.DumpOptions{
			PID: o.PID, Dir: o.Dir, Parent: o.Parent, Track: o.Track, Streams: o.Streams, Compression: o.Compression,
			After: stasis.AfterRun, AtStep: at,
		})
	} else {
		_, err = stasis.Restore(context.Background(), stasis.RestoreOptions{Dir: o.Dir, Track: o.Track, Lazy: o.Lazy, AtStep: at})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// killed begins something in a worker and kills that after a time of chance. It
// returns when all is gone that the worker had started, but for the program.
func (w *walk) killed(o order, program []int) (after time.Duration) {
	w.t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	line := make([]byte, 1024)
	if n, err := out.Read(line); err != nil || string(line[:n]) != "go\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		w.t.Fatalf("the worker says %q: %v", line[:n], err)
	}
	after = time.Duration(w.random.Int64N(int64(150 * time.Millisecond)))
	<-time.After(after)
	var left []*proc.Task // with the guard of a restore, whose work must not fall into a later move
	for err := errors.New("not read yet"); err != nil && !errors.Is(err, proc.ErrGone); {
		var tree []*proc.Task
		if tree, err = proc.Tree(cmd.Process.Pid); err == nil {
			left = tree[1:]
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		w.t.Fatal(err)
	}
	_ = cmd.Wait()
	for deadline := time.Now().Add(patience); ; <-time.After(2 * time.Millisecond) {
		there := slices.DeleteFunc(slices.Clone(left), func(old *proc.Task) bool {
			now, err := proc.ReadTask(old.PID)
			// A tracker is there to stay; it may have become one since.
			return slices.Contains(program, old.PID) || err != nil || slices.Equal(now.Cmdline, []string{keeper.Name}) || now.StartTime != old.StartTime || now.Zombie() || now.SID == w.p.PID()
		})
		if len(there) == 0 {
			return after
		}
		if time.Now().After(deadline) {
			for _, task := range there {
				w.t.Errorf("a worker that was killed after %v has left process %d (%s %q)", after, task.PID, task.Comm, task.Cmdline)
			}
			w.t.FailNow()
		}
	}
}

// killedDump kills Stasis in a dump. The program goes on, and the next dump on
// the same parent is right.
func (w *walk) killedDump() string {
	w.t.Helper()
	l, parent := w.next(), w.parent()
	after := w.killed(order{
		PID: w.p.PID(), Dir: l.dir, Parent: parent, Track: w.random.IntN(4) > 0, Streams: 1 + w.random.IntN(8), Compression: w.codec(),
	}, testkit.Tree(w.p.PID()))
	what := fmt.Sprintf("%s on %q after %v", l.dir, parent, after)
	w.prove()
	if _, err := os.Stat(filepath.Join(l.dir, "manifest.json")); err == nil { // it was done
		verified, err := stasis.Verify(w.t.Context(), stasis.VerifyOptions{Dir: l.dir})
		if err != nil {
			w.t.Errorf("%s: there is a checkpoint: %v", what, err)
			return what
		}
		w.add(l, verified.Manifest)
		what += ", when it was done"
	} else if err := os.RemoveAll(l.dir); err != nil {
		w.t.Fatal(err)
	}
	return what + "; " + w.dumpOn(parent, stasis.AfterRun)
}

// killedRestore kills Stasis in a restore. The whole program is there then, or
// nothing of it.
func (w *walk) killedRestore() string {
	w.t.Helper()
	l := w.pick(restorable)
	if l == nil {
		return ""
	}
	testkit.Kill(w.t, w.p.PID())
	after := w.killed(order{Dir: l.dir, Track: w.random.IntN(2) == 0, Lazy: w.random.IntN(2) == 0}, l.pids)
	what := fmt.Sprintf("%s after %v", l.dir, after)
	if w.runs(l, what) {
		w.isBack(l)
		w.prove()
		return what + ", when it was done"
	}
	return what + "; " + w.bringBack(l, false)
}

// runs waits until the root of the program runs, held by nobody, or all of the
// program is gone.
func (w *walk) runs(l *link, what string) bool {
	w.t.Helper()
	seen := 0 // how often it was seen to run, in a row
	for deadline := time.Now().Add(patience); ; <-time.After(50 * time.Millisecond) {
		testkit.Watch(w.p.PID()) // which lets dead ones go
		root, err := proc.ReadTask(w.p.PID())
		if seen++; err != nil || root.TracerPID != 0 || root.Zombie() || root.Comm != "subject" && root.Comm != "exe" || root.State == 'T' || dying(w.p.PID()) {
			seen = 0
		}
		if seen == 3 {
			return true
		}
		left := ""
		for _, pid := range l.pids {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // those that were born a moment ago come to this process
			if task, err := proc.ReadTask(pid); err == nil {
				left += fmt.Sprintf(" %d (%s) in state %c", pid, task.Comm, task.State)
			}
		}
		if left == "" && err != nil {
			return false
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: left are the processes%s", what, left)
		}
	}
}

// dying says whether a process has got a SIGKILL that no CPU has had time for yet.
func dying(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if (key == "SigPnd" || key == "ShdPnd") && err == nil && mask&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
