package faults

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/proc"
)

// patience bounds every wait. The machine may be busy with other tests.
const patience = 60 * time.Second

// workerVariable marks this test binary as a worker.
const workerVariable = "STASIS_FAULTS_WORKER"

// Points of a dump or restore at which a worker can wait, beside the steps.
const (
	pointCopying = "copying" // in the middle of the first copy
	pointFilling = "filling" // in the middle of putting memory in place
	pointResumed = "resumed" // the restored tree runs
)

// plan is what a worker does: a dump or, with Restore, a restore.
type plan struct {
	Restore     bool
	PID         int
	Dir         string
	After       stasis.After
	Engine      stasis.Engine
	Lazy        bool
	FinalBuffer int
	Parent      string
	Track       bool
	PreDump     bool     // a pre-dump instead of a dump
	NetworkLock string   // how CRIU locks connections; "": as it is chosen
	Verbose     bool     // CRIU's log tells of every step of a restore
	Wait        []string // points at which it waits; nil: at none
}

// outcome is how that ended.
type outcome struct {
	Err  string
	Step stasis.Step
	Kind string // of the errors that callers can act on
}

func TestMain(m *testing.M) {
	if text := os.Getenv(workerVariable); text != "" {
		work(text)
		return
	}
	os.Exit(m.Run())
}

// work is the worker's side.
func work(text string) {
	var p plan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		panic(err)
	}
	os.Unsetenv(workerVariable)
	orders := bufio.NewScanner(os.Stdin)
	passed := make(map[string]bool)
	at := func(point string) error {
		for _, wait := range p.Wait {
			if wait == point && !passed[point] {
				passed[point] = true
				fmt.Println("at " + point)
				if !orders.Scan() {
					return errors.New("the test has ended")
				}
			}
		}
		return nil
	}
	result, _ := json.Marshal(outcomeOf(p.run(at)))
	fmt.Println("done " + string(result))
	orders.Scan() // the test looks what is left
}

func (p *plan) run(at func(string) error) error {
	atStep := func(step stasis.Step) error { return at(string(step)) }
	if p.Restore {
		_, err := stasis.Restore(context(), stasis.RestoreOptions{
			Dir: p.Dir, Lazy: p.Lazy, Track: p.Track, AtStep: atStep,
			AdjustCRIU: func(o *stasis.CRIUOptions) {
				if p.Verbose {
					o.LogLevel = 4
				}
			},
			Resumed: func(*stasis.RestoreResult) { _ = at(pointResumed) },
			Progress: func(g stasis.Progress) {
				if g.Step == stasis.StepFill && g.Done > 0 && g.Done < g.Total {
					_ = at(pointFilling)
				}
			},
		})
		return err
	}
	progress := func(g stasis.Progress) {
		if g.Step == stasis.StepCopy && g.Done > 0 {
			_ = at(pointCopying)
		}
	}
	if p.PreDump {
		_, err := stasis.PreDump(context(), stasis.PreDumpOptions{
			PID: p.PID, Dir: p.Dir, Parent: p.Parent, Streams: 2, AtStep: atStep, Progress: progress,
		})
		return err
	}
	options := criuOptions
	options.NetworkLock = p.NetworkLock
	_, err := stasis.Dump(context(), stasis.DumpOptions{
		PID: p.PID, Dir: p.Dir, After: p.After, Engine: p.Engine, FinalBuffer: p.FinalBuffer, Streams: 2,
		Parent: p.Parent, Track: p.Track, CRIU: options, AtStep: atStep, Progress: progress,
	})
	return err
}

func outcomeOf(err error) outcome {
	if err == nil {
		return outcome{}
	}
	o := outcome{Err: err.Error(), Step: stasis.FailedStep(err)}
	for name, kind := range map[string]error{
		"input": stasis.ErrInput, "process": stasis.ErrProcess, "busy": stasis.ErrBusy,
		"damaged": stasis.ErrDamaged, "conflict": stasis.ErrConflict,
	} {
		if errors.Is(err, kind) {
			o.Kind = name
		}
	}
	return o
}

// worker is a Stasis in a process of its own, seen from the test.
type worker struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    *os.File
	out   *os.File
	lines *bufio.Reader
	left  []identity // what it had started when it was killed
	dirs  []string   // its work folders then
}

func start(t *testing.T, p plan) *worker {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerVariable+"="+string(text))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inRead, outWrite, os.Stderr
	err = cmd.Start()
	inRead.Close()
	outWrite.Close()
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{t: t, cmd: cmd, in: inWrite, out: outRead, lines: bufio.NewReader(outRead)}
	t.Cleanup(func() {
		inWrite.Close()
		outRead.Close()
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return w
}

func (w *worker) hear() (word, rest string) {
	w.t.Helper()
	if err := w.out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	line, err := w.lines.ReadString('\n')
	if err != nil {
		w.t.Fatalf("the worker says nothing more: %v", err)
	}
	word, rest, _ = strings.Cut(strings.TrimSpace(line), " ")
	return word, rest
}

// reach waits until the worker stands at a point.
func (w *worker) reach(point string) {
	w.t.Helper()
	if word, rest := w.hear(); word != "at" || rest != point {
		w.t.Fatalf("the worker says %q %s, and should be at %s", word, rest, point)
	}
	w.note()
}

// goOn lets it go on.
func (w *worker) goOn() {
	w.t.Helper()
	if _, err := w.in.WriteString("go\n"); err != nil {
		w.t.Fatal(err)
	}
}

// end waits for the end of what it does.
func (w *worker) end() outcome {
	w.t.Helper()
	word, rest := w.hear()
	var o outcome
	if word != "done" {
		w.t.Fatalf("the worker says %q %s, and should be done", word, rest)
	}
	if err := json.Unmarshal([]byte(rest), &o); err != nil {
		w.t.Fatal(err)
	}
	w.note()
	w.in.Close()
	if err := w.cmd.Wait(); err != nil {
		w.t.Fatal(err)
	}
	return o
}

// kill ends the worker where it stands.
func (w *worker) kill() {
	w.t.Helper()
	w.note()
	if err := w.cmd.Process.Kill(); err != nil {
		w.t.Fatal(err)
	}
	_ = w.cmd.Wait()
}

// note remembers what the worker has started and made so far.
func (w *worker) note() {
	tree, err := proc.Tree(w.cmd.Process.Pid)
	if err != nil {
		return
	}
	for _, task := range tree[1:] {
		w.left = append(w.left, identity{task.PID, task.StartTime})
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", w.cmd.Process.Pid))
	for _, fd := range fds {
		if path, err := os.Readlink(fd); err == nil && strings.Contains(filepath.Base(path), "stasis-work-") {
			w.dirs = append(w.dirs, path)
		}
	}
}

// log reads CRIU's log, as far as there is one.
func (w *worker) log() string {
	w.t.Helper()
	if len(w.dirs) == 0 {
		w.note()
	}
	for _, dir := range w.dirs {
		if text, err := os.ReadFile(filepath.Join(dir, "restore.log")); err == nil {
			return string(text)
		}
	}
	return ""
}

// criu finds the CRIU that the worker drives.
func (w *worker) criu() int {
	w.t.Helper()
	children, err := proc.Children(w.cmd.Process.Pid)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, pid := range children {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		// It changes its name when it has its request.
		if strings.Contains(string(line), "\x00swrk\x00") || strings.Contains(string(line), "criu: ") {
			return pid
		}
	}
	w.t.Fatalf("the worker drives no CRIU: its children are %v", children)
	return 0
}

// killCRIU kills CRIU and waits until the kernel has taken it apart, so that
// what it held is free; endCRIU does it by another signal.
func (w *worker) killCRIU() { w.t.Helper(); w.endCRIU(unix.SIGKILL) }

func (w *worker) endCRIU(signal unix.Signal) {
	w.t.Helper()
	pid := w.criu()
	if err := unix.Kill(pid, signal); err != nil {
		w.t.Fatal(err)
	}
	within(w.t, "the end of CRIU", func() error {
		if task, err := proc.ReadTask(pid); err == nil && !task.Zombie() {
			return fmt.Errorf("CRIU is in state %c", task.State)
		}
		return nil
	})
}
