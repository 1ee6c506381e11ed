//go:build linux && (amd64 || arm64)

package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/image"
	"stasis/internal/jobs/db"
	"stasis/internal/proc"
	"stasis/internal/store"
	"stasis/internal/trust"
)

const (
	// clearWithin bounds the wait for the end of killed processes of the job.
	clearWithin = 10 * time.Second
	// drainWithin bounds the wait for the last output of a job that has ended.
	drainWithin = time.Second
)

// start begins a run with a command.
func (s *shim) start(c *Command) error {
	s.op.Lock()
	defer s.op.Unlock()
	con, err := s.prepare(c.Terminal, c.UID)
	if err != nil {
		return err
	}
	s.hub.resize(c.Rows, c.Cols, false)
	con.resize(c.Rows, c.Cols)
	process, err := s.spawn(c, con)
	if err != nil {
		con.ours.Close()
		con.theirs.Close()
		return err
	}
	s.begin(process, con, "")
	s.children.Unlock() // taken by spawn
	return nil
}

// prepare makes room for a run, and its console.
func (s *shim) prepare(terminal bool, uid uint32) (*console, error) {
	if now := s.now().Status; now.Running {
		return nil, fmt.Errorf("the job runs already, as process %d", now.PID)
	}
	if err := s.clear(); err != nil {
		return nil, err
	}
	return newConsole(terminal, uid)
}

// spawn starts the command. When it succeeds, children is held: the process must be known before it can be reaped.
func (s *shim) spawn(c *Command, con *console) (pid int, err error) {
	path, err := lookPath(c)
	if err != nil {
		return 0, err
	}
	end, err := con.open(0)
	if err != nil {
		return 0, err
	}
	defer end.Close()
	attr := &os.ProcAttr{Dir: c.Dir, Env: c.Env, Files: []*os.File{end, end, end}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if con.tty {
		attr.Sys.Setctty = true // of descriptor 0
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return 0, err
		}
		defer null.Close()
		attr.Files[0] = null
	}
	if c.UID != 0 || c.GID != 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID}
	}
	s.children.Lock()
	process, err := os.StartProcess(path, c.Argv, attr)
	if err != nil {
		s.children.Unlock()
		return 0, fmt.Errorf("start %s: %w", c.Argv[0], err)
	}
	pid = process.Pid
	spare(pid)
	return pid, process.Release()
}

// spare undoes for a job that the daemon is protected from the kernel's out-of-memory killer: what is saved goes before what saves it.
// A restored job has its own value from its checkpoint.
func spare(pid int) {
	path := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	if now, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(now), "-") {
		_ = os.WriteFile(path, []byte("0"), 0) // the job may have ended
	}
}

// lookPath finds the program as a shell with the job's own environment would.
func lookPath(c *Command) (string, error) {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return "", errors.New("the job has no command")
	}
	name := c.Argv[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(c.Dir, name)
		}
		return name, nil
	}
	folders := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, entry := range c.Env {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			folders = value
		}
	}
	for _, folder := range filepath.SplitList(folders) {
		if path, err := exec.LookPath(filepath.Join(folder, name)); err == nil && filepath.IsAbs(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: no such command in %s: give its path", name, folders)
}

// restore begins a run with a checkpoint, and notes how it went where that is asked for.
func (s *shim) restore(r *Restore) (*Restored, error) {
	if !r.Trace {
		return s.restoreFrom(context.Background(), r)
	}
	ctx, spans := noteSpans(context.Background())
	restored, err := s.restoreFrom(ctx, r)
	if restored == nil {
		restored = new(Restored)
	}
	restored.Spans = spans()
	return restored, err
}

func (s *shim) restoreFrom(ctx context.Context, r *Restore) (*Restored, error) {
	s.op.Lock()
	defer s.op.Unlock()
	con, err := s.prepare(r.Terminal, r.UID)
	if err != nil {
		return nil, err
	}
	end, err := con.open(r.ConsoleFlags)
	if err != nil {
		con.ours.Close()
		con.theirs.Close()
		return nil, err
	}
	defer end.Close()
	s.children.Lock()
	defer s.children.Unlock()
	o := stasis.RestoreOptions{
		Dir: r.Dir, CRIUPath: r.CRIUPath, Force: r.Force, Track: r.Track,
		AdjustCRIU: func(o *stasis.CRIUOptions) { giveConsole(o, end) },
	}
	checked := r.UID == 0
	if !checked {
		if o.AtStep, err = noMoreRights(r, &checked); err != nil {
			return nil, err
		}
	}
	result, err := stasis.Restore(ctx, o)
	if err == nil && !checked {
		err = errors.Join(errors.New("the restored tree was not checked before it ran"), unix.Kill(result.PID, unix.SIGKILL))
	}
	defer debug.FreeOSMemory() // this process lives long and does little
	if err != nil {
		con.ours.Close()
		con.theirs.Close()
		return nil, err
	}
	s.begin(result.PID, con, "restored from "+filepath.Base(r.Dir))
	return &Restored{ToResume: result.ToResume, Took: result.Took, PIDs: result.PIDs, Memory: result.BytesMemory, Warnings: result.Warnings}, nil
}

// noMoreRights looks at a restored tree before it runs: it must have no more rights than its owner. Without its memory to fill it never
// comes to that.
func noMoreRights(r *Restore, checked *bool) (func(stasis.Step) error, error) {
	folder, err := store.OpenFolder(r.Dir)
	if err != nil {
		return nil, err
	}
	m, err := image.ReadManifest(folder)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, process := range m.Processes {
		if process.State != "Z" {
			pids = append(pids, process.PID)
		}
	}
	return func(step stasis.Step) error {
		if step != stasis.StepFill {
			return nil
		}
		*checked = true
		return trust.Restored(pids, trust.User{UID: r.UID, GID: r.GID})
	}, nil
}

// giveConsole lets the restored job find the new console where it had the old one.
func giveConsole(o *stasis.CRIUOptions, end *os.File) {
	var others []string
	o.InheritFDs = make(map[string]*os.File)
	for _, external := range o.External {
		if isKey(external) {
			o.InheritFDs[external] = end
		} else {
			others = append(others, external)
		}
	}
	o.External = others
}

// begin notes a run that has begun. With s.children held.
func (s *shim) begin(pid int, con *console, notice string) {
	var start uint64
	if task, err := proc.ReadTask(pid); err == nil {
		start = task.StartTime
	}
	pumped := make(chan struct{})
	s.hub.use(con)
	if notice != "" {
		s.hub.notice(notice)
	}
	go func() {
		defer close(pumped)
		s.hub.pump(con)
	}()
	s.update(func(now *Status) {
		now.Run++
		now.Running, now.PID, now.Start, now.Console, now.Exit = true, pid, start, con.key, nil
		s.pumped = pumped
	})
}

// reapAll waits for the children of this process, which are the job's first process and its orphans.
func (s *shim) reapAll() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	for range ended {
		s.reap()
	}
}

func (s *shim) reap() {
	s.children.Lock()
	defer s.children.Unlock()
	for {
		var how unix.WaitStatus
		pid, err := unix.Wait4(-1, &how, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if now := s.now().Status; now.Running && now.PID == pid {
			go s.ended(exitOf(how))
		}
	}
}

func exitOf(how unix.WaitStatus) *db.Exit {
	exit := &db.Exit{Code: how.ExitStatus(), At: time.Now().UTC()}
	if how.Signaled() {
		exit.Signal = unix.SignalName(how.Signal())
	}
	return exit
}

// ended ends a run: whatever is left of the job's tree is killed, and its last output is read.
func (s *shim) ended(exit *db.Exit) {
	if err := s.clear(); err != nil {
		fmt.Fprintln(os.Stderr, "stasis-shim:", err)
	}
	s.hub.mu.Lock()
	con := s.hub.console
	s.hub.mu.Unlock()
	con.theirs.Close()
	select {
	case <-s.pumped:
	case <-time.After(drainWithin): // somebody outside of the tree has it open
	}
	con.ours.Close()
	s.hub.use(nil)
	s.hub.notice("the job has ended " + Describe(exit))
	s.update(func(now *Status) {
		exit.Lost = s.lost()
		now.Running, now.Exit = false, exit
	})
}

// downWithin is how long after SIGTERM a machine that is going down may take to end all processes; systemd takes 90 s at most.
const downWithin = 2 * time.Minute

// noteTerm takes notice of SIGTERM, which nobody sends to a shim but a machine that is going down, to all processes at once.
func (s *shim) noteTerm(terminated <-chan os.Signal) {
	for range terminated {
		s.mu.Lock()
		s.term = time.Now()
		s.mu.Unlock()
	}
}

// lost says whether a run has ended with the machine, and not by itself, however cleanly the job takes SIGTERM: it has not come to its end,
// and goes on when the machine is up again. With s.mu held.
func (s *shim) lost() bool { return !s.term.IsZero() && time.Since(s.term) < downWithin }

// Describe says in words how a job has ended.
func Describe(exit *db.Exit) string {
	switch {
	case exit == nil:
		return "in an unknown way"
	case exit.Lost:
		return "with the machine or with Stasis"
	case exit.Signal != "":
		return "by " + exit.Signal
	}
	return fmt.Sprintf("with exit code %d", exit.Code)
}

// clear ends what is left of the job's tree and waits until its process ids are free.
func (s *shim) clear() error {
	for deadline := time.Now().Add(clearWithin); ; time.Sleep(2 * time.Millisecond) {
		s.children.Lock()
		tree, err := proc.Tree(os.Getpid())
		if err == nil {
			for _, task := range tree[1:] {
				_ = unix.Kill(task.PID, unix.SIGKILL)
			}
			for _, task := range tree[1:] {
				if task.PPID == os.Getpid() {
					_, _ = unix.Wait4(task.PID, nil, unix.WNOHANG, nil)
				}
			}
		}
		s.children.Unlock()
		if err != nil {
			return err
		}
		if len(tree) == 1 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d of the job was killed and does not end", tree[1].PID)
		}
	}
}

// signal sends a signal to the job's first process, or to its whole tree.
func (s *shim) signal(sig syscall.Signal, tree bool) error {
	now := s.now().Status
	if !now.Running {
		return errors.New("the job does not run")
	}
	pids := []int{now.PID}
	if tree {
		tasks, err := proc.Tree(os.Getpid())
		if err != nil {
			return err
		}
		for _, task := range tasks[1:] {
			if task.PID != now.PID {
				pids = append(pids, task.PID)
			}
		}
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), pid, err)
		}
	}
	return nil
}

// BootID names this run of the machine.
func BootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
}
