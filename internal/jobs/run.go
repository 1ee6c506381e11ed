package jobs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
	"stasis/internal/proc"
)

var validName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@+=-]{0,63}$`)

// check finds what is wrong with a specification, and fills in what it leaves open.
func (m *Manager) check(spec *db.Spec) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", stasis.ErrInput, fmt.Errorf(format, args...))
	}
	if !validName.MatchString(spec.Name) {
		return bad("the name %q: use up to 64 letters, digits and _ . @ + = -, beginning with a letter, a digit or _", spec.Name)
	}
	if _, err := parseSchedule(spec); err != nil {
		return err
	}
	switch spec.Restart {
	case "":
		spec.Restart = db.RestartNever
	case db.RestartNever, db.RestartOnFailure, db.RestartAlways:
	default:
		return bad("restart %q: it is never, on-failure or always", spec.Restart)
	}
	k := spec.Keep
	if k.Last < 0 || k.Hourly < 0 || k.Daily < 0 || k.Weekly < 0 || k.Monthly < 0 || k.Bytes < 0 {
		return bad("what is kept of the checkpoints must not be negative")
	}
	if spec.MaxRetries < 0 || spec.RestartDelay < 0 {
		return bad("the number of attempts and the pause between them must not be negative")
	}
	if spec.Dir == "" {
		spec.Dir = "/"
	}
	for _, path := range append([]string{spec.Dir}, spec.WithFiles...) {
		if !filepath.IsAbs(path) {
			return bad("%q: an absolute path is needed, such as /srv/data", path)
		}
	}
	if err := spec.Settings.CRIU.Validate(); err != nil {
		return bad("%w", err)
	}
	return nil
}

// reserve makes the record of a job and reserves its name. Where the specification has none it gets the command's.
func (m *Manager) reserve(spec db.Spec, owner uint32) (*job, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("%w: the daemon is stopping", stasis.ErrBusy)
	}
	if spec.Name == "" {
		spec.Name = m.freeName(spec.Argv, owner)
	}
	if err := m.check(&spec); err != nil {
		return nil, err
	}
	if owner != 0 {
		theirs := 0
		for _, j := range m.jobs {
			if j.rec.Owner == owner {
				theirs++
			}
		}
		if theirs >= m.o.MaxJobs {
			return nil, fmt.Errorf("%w: user %d has %d already: remove some by \"stasis rm job\"", ErrTooMany, owner, theirs)
		}
	}
	if _, taken := m.jobs[spec.Name]; taken {
		return nil, fmt.Errorf("%w: %s: choose another (--name), or remove it by \"stasis rm job %s\"", ErrExists, spec.Name, spec.Name)
	}
	if _, err := os.Stat(m.checkpointDir(owner, spec.Name)); err == nil {
		return nil, fmt.Errorf("%w: %s has checkpoints in %s: choose another name (--name)", ErrExists, spec.Name, m.checkpointDir(owner, spec.Name))
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	rec := db.Job{ID: hex.EncodeToString(id[:]), Spec: spec, Owner: owner, State: db.StateStarting, Created: time.Now().UTC()}
	j := newJob(m, rec, nil)
	j.op <- struct{}{} // the start is its first operation
	m.jobs[spec.Name] = j
	m.generation.Add(1)
	return j, nil
}

// freeName makes a name of the command, with a number where that is taken, by a job or by the checkpoints of one that was removed. With
// m.mu held.
func (m *Manager) freeName(argv []string, owner uint32) string {
	base := "job"
	if len(argv) > 0 {
		if tidy := strings.Trim(untidy.ReplaceAllString(filepath.Base(argv[0]), "-"), "-."); tidy != "" {
			base = tidy[:min(len(tidy), 40)]
		}
	}
	name := base
	for n := 2; ; n++ {
		if _, taken := m.jobs[name]; !taken {
			if _, err := os.Stat(m.checkpointDir(owner, name)); errors.Is(err, fs.ErrNotExist) {
				return name
			}
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}

var untidy = regexp.MustCompile(`[^A-Za-z0-9_.]+`)

// forget undoes reserve.
func (m *Manager) forget(j *job) {
	j.mu.Lock()
	j.removed = true
	j.mu.Unlock()
	j.wake()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.jobs, j.name())
	m.generation.Add(1)
}

// Run starts a command as a job of a user.
func (m *Manager) Run(ctx context.Context, spec db.Spec, owner uint32) (Info, error) {
	if len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return Info{}, fmt.Errorf("%w: there is no command to run", stasis.ErrInput)
	}
	j, err := m.reserve(spec, owner)
	if err != nil {
		return Info{}, err
	}
	defer func() { <-j.op }()
	_ = os.RemoveAll(m.shimDir(j.name())) // of an earlier job of that name
	s, err := j.theShim(ctx)
	if err != nil {
		m.forget(j)
		return Info{}, err
	}
	spec = j.rec.Spec
	ctx, end := j.startSpan(ctx)
	// The shim starts it also for a client that has left: then it had better be a job.
	now, err := s.Start(context.WithoutCancel(ctx), shim.Command{
		Argv: spec.Argv, Env: spec.Env, Dir: spec.Dir, UID: spec.UID, GID: spec.GID, Terminal: spec.Terminal, Rows: spec.Rows, Cols: spec.Cols,
	})
	end(&now, err)
	if err != nil {
		m.forget(j)
		return Info{}, errors.Join(fmt.Errorf("%w: %w", stasis.ErrInput, err), quit(s), os.RemoveAll(m.shimDir(j.name())))
	}
	j.event(EventCreated, "job %s was made", j.name())
	j.begun(s, now, func(*db.Job) {})
	j.event(EventStarted, "the job was started as process %d", now.PID)
	m.work.Go(j.keepTime)
	return j.info(), nil
}

// Manage takes up a running process as a job of a user. Until it is restored for the first time it stays its parent's child, and has the
// terminal and the files that it has.
func (m *Manager) Manage(_ context.Context, pid int, spec db.Spec, owner uint32) (Info, error) {
	task, err := proc.ReadTask(pid)
	if err != nil || task.Zombie() {
		return Info{}, fmt.Errorf("%w: there is no process %d", stasis.ErrInput, pid)
	}
	if task.SID != pid {
		return Info{}, fmt.Errorf("%w: process %d (%s) belongs to the session of process %d, which would not be in its checkpoints: take up that one, or start it by \"stasis run\" or setsid", stasis.ErrInput, pid, task.Comm, task.SID)
	}
	if other := m.jobOf(pid); other != "" {
		return Info{}, fmt.Errorf("%w: process %d belongs to job %s already", ErrExists, pid, other)
	}
	spec.Argv, spec.UID = task.Cmdline, uint32(task.UID) //nolint:gosec // a uid
	spec.Dir, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err == nil {
		spec.Env = strings.FieldsFunc(string(env), func(r rune) bool { return r == 0 })
	}
	spec.Terminal = hasTerminal(pid)
	j, err := m.reserve(spec, owner)
	if err != nil {
		return Info{}, err
	}
	defer func() { <-j.op }()
	s, now, ok := takeProcess(pid, task.StartTime)
	if !ok {
		m.forget(j)
		return Info{}, fmt.Errorf("%w: process %d has just ended", stasis.ErrInput, pid)
	}
	j.begun(s, now, func(rec *db.Job) { rec.Managed = true })
	j.event(EventManaged, "process %d (%s) was taken up as job %s", pid, task.Comm, j.name())
	m.work.Go(j.keepTime)
	return j.info(), nil
}

// jobOf names the job whose first process that is.
func (m *Manager) jobOf(pid int) string {
	for _, j := range m.list() {
		if i := j.info(); i.State == db.StateRunning && i.PID == pid {
			return j.name()
		}
	}
	return ""
}

func hasTerminal(pid int) bool {
	var st unix.Stat_t
	for fd := range 3 {
		if unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR &&
			unix.Major(st.Rdev) >= firstPTY && unix.Major(st.Rdev) <= lastPTY {
			return true
		}
	}
	return false
}

// graceToEnd is how long a job that is asked to end may take.
const graceToEnd = 10 * time.Second

// ends says whether a signal is meant to end a job, which is then not brought back.
func ends(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGTERM, syscall.SIGKILL, syscall.SIGINT, syscall.SIGQUIT:
		return true
	}
	return false
}

// Kill sends a signal to a job. One that ends jobs (TERM, KILL, INT, QUIT) is waited for, and the job is not brought back; it is
// an error if it does not end within ten seconds.
func (m *Manager) Kill(ctx context.Context, name string, sig syscall.Signal, tree bool) (Info, error) {
	j, err := m.find(name)
	if err != nil {
		return Info{}, err
	}
	if !ends(sig) {
		j.mu.RLock()
		s, alive := j.shim, j.rec.State == db.StateRunning
		j.mu.RUnlock()
		if !alive || s == nil {
			return Info{}, fmt.Errorf("%w: job %s does not run", ErrState, name)
		}
		if err := s.Signal(ctx, sig, tree); err != nil {
			return Info{}, err
		}
		return j.info(), nil
	}
	before := j.state()
	end, err := j.takeOver(ctx)
	if err != nil {
		return Info{}, err
	}
	defer end()
	switch state := j.state(); {
	case !wasAlive(before) && state != db.StateRunning:
		return Info{}, fmt.Errorf("%w: job %s does not run, it is %s", ErrState, name, state)
	case state != db.StateRunning:
		j.update(func(rec *db.Job) { rec.State = db.StateKilled })
		j.event(EventExited, "the job is not brought back any more, on request")
		j.letShimGo()
		return j.info(), nil
	}
	if err := j.ask(ctx, sig, tree || sig == syscall.SIGKILL); err != nil {
		return Info{}, err
	}
	j.killed()
	return j.info(), nil
}

// killed notes that a job has ended on request.
func (j *job) killed() {
	exit := j.lastExit()
	j.update(func(rec *db.Job) { rec.State, rec.PID, rec.Start = db.StateKilled, 0, 0 })
	j.tell(db.Event{Kind: EventExited, Text: "the job was ended on request, " + shim.Describe(exit), Exit: exit})
	j.letShimGo()
}

// ask sends a signal and waits for the job's end, which it may refuse.
func (j *job) ask(ctx context.Context, sig syscall.Signal, tree bool) error {
	j.mu.Lock()
	s, over := j.shim, j.over
	j.expected = true
	j.mu.Unlock()
	err := s.Signal(ctx, sig, tree)
	if err == nil && waitOver(ctx, over, graceToEnd) {
		return nil
	}
	return j.unexpect(errors.Join(err, fmt.Errorf("%w: job %s got %s and runs on: use --signal KILL", ErrState, j.name(), unix.SignalName(sig))))
}

// lastExit is how the last run ended.
func (j *job) lastExit() *db.Exit {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.rec.Exit
}

// unexpect undoes that the end of the run is expected, unless it has just come; then there is no error any more.
func (j *job) unexpect(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case <-j.over:
		return nil
	default:
		j.expected = false
		return err
	}
}

// Remove forgets a job that does not run, or, with force, one that does, which is killed. Its checkpoints go with it where wanted; else
// they stay in their folder.
func (m *Manager) Remove(ctx context.Context, name string, checkpoints, force bool) (Info, error) {
	j, err := m.find(name)
	if err != nil {
		return Info{}, err
	}
	if state := j.state(); wasAlive(state) && !force {
		return Info{}, fmt.Errorf("%w: job %s is %s: end it first by \"stasis kill %s\", or use --force", ErrState, name, state, name)
	}
	end, err := j.takeOver(ctx)
	if err != nil {
		return Info{}, err
	}
	defer end()
	if err := j.endRun(ctx, syscall.SIGKILL, true, 0); err != nil {
		return Info{}, err
	}
	j.letShimGo()
	was := j.info()
	if checkpoints {
		j.mu.RLock()
		all := append([]db.Checkpoint(nil), j.cps...)
		j.mu.RUnlock()
		if err := j.remove(ctx, all); err != nil {
			return Info{}, fmt.Errorf("delete the checkpoints of job %s: %w", name, err)
		}
		j.removeIdentity()
	}
	if err := errors.Join(os.RemoveAll(m.shimDir(j.name())), m.db.DeleteJob(j.name())); err != nil {
		return Info{}, err
	}
	if !checkpoints {
		j.keepAside()
	}
	m.forget(j)
	j.event(EventRemoved, "job %s was removed", j.name())
	return was, nil
}

// Change is what can be changed of a job; nil stays.
type Change struct {
	Every        *time.Duration
	Cron         *string
	Keep         *db.Keep
	Restart      *db.Restart
	MaxRetries   *int
	RestartDelay *time.Duration
	FromScratch  *bool
}

// Update changes schedule, retention or restart of a job.
func (m *Manager) Update(name string, c Change) (Info, error) {
	j, err := m.find(name)
	if err != nil {
		return Info{}, err
	}
	j.mu.RLock()
	spec := j.rec.Spec
	j.mu.RUnlock()
	set(&spec.Every, c.Every)
	set(&spec.Cron, c.Cron)
	set(&spec.Keep, c.Keep)
	set(&spec.Restart, c.Restart)
	set(&spec.MaxRetries, c.MaxRetries)
	set(&spec.RestartDelay, c.RestartDelay)
	set(&spec.FromScratch, c.FromScratch)
	if err := m.check(&spec); err != nil {
		return Info{}, err
	}
	j.update(func(rec *db.Job) {
		rec.Spec = spec
		j.revision++
		if c.Every != nil || c.Cron != nil {
			j.schedule, _ = parseSchedule(&spec)
			j.due = time.Time{}
			if j.schedule != nil {
				j.due = j.schedule.Next(time.Now())
			}
		}
	})
	if err := j.writeIdentity(); err != nil {
		return Info{}, err
	}
	j.event(EventUpdated, "schedule, retention or restart was changed")
	return j.info(), nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// Logs writes a job's log to w: its last so many lines, or all where lines is negative. With follow it goes on with what is printed
// until the job is over.
func (m *Manager) Logs(ctx context.Context, name string, lines int, follow bool, w io.Writer) error {
	j, err := m.find(name)
	if err != nil {
		return err
	}
	over := func() bool { return !wasAlive(j.state()) || m.ctx.Err() != nil }
	return shim.CopyLog(ctx, m.shimDir(j.name()), lines, follow, over, w)
}

// Attach looks at a job's terminal, with a window of so many rows and columns (0: unknown). The caller closes it.
func (m *Manager) Attach(ctx context.Context, name string, rows, cols uint16) (*shim.Terminal, error) {
	j, err := m.find(name)
	if err != nil {
		return nil, err
	}
	j.mu.RLock()
	s := j.shim
	j.mu.RUnlock()
	with, ok := s.(terminals)
	if !ok {
		return nil, fmt.Errorf("%w: job %s has no terminal here: it does not run, or it runs where it was started and gets one with its first restore", ErrState, name)
	}
	return with.Attach(ctx, rows, cols)
}
