package stasis

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/families"
	"stasis/internal/pager"
	"stasis/internal/proc"
)

// startPager listens for the userfaultfds of the restored processes. Should Stasis
// die, the kernel would hand out zeros for the memory that is still to come: the
// guard holds copies of them.
func (r *restore) startPager() (err error) {
	if !r.hasMemory() {
		return nil
	}
	fire, release := r.guard.Fire, r.guard.Release // at once: a process that waits for a damaged page waits for good, and CRIU for it
	r.pager, err = pager.ListenEarly(r.work.Path(), r.memory, pager.Options{
		Lazy:         r.opts.Lazy,
		HostPID:      r.hostPID,
		OnDescriptor: r.hold,
		OnComplete:   func() { _ = release() }, // a guard that is gone holds nothing
		OnProgress:   r.filled,
		OnError:      func(error) { _ = fire() },
	})
	return err
}

// memory is ready some time after the checkpoint is open: the index grows with
// memory, and CRIU does not need it.
func (r *restore) memory() (pager.Source, error) {
	if err := r.checkpoint.Ready(); err != nil {
		return nil, err
	}
	return families.Of(r.checkpoint), nil
}

// hostPID is the pid of a restored process as this machine sees it; 0 where the
// tree has a pid namespace of its own. That pid is another process' here.
func (r *restore) hostPID(pid int) int {
	if r.result.PID != r.checkpoint.Manifest().RootPID {
		return 0
	}
	return pid
}

// hold gives a userfaultfd of the tree to the guard. With the first of them
// comes the first chance to watch the root: CRIU tells its pid only when all
// processes are restored, and until then it is a child of Stasis, not of CRIU.
// Where it has a pid namespace, CRIU tells its pid at once.
func (r *restore) hold(fd int) error {
	pid, parent := r.checkpoint.Manifest().RootPID, os.Getpid()
	if r.opts.Sibling {
		parent = os.Getppid()
	}
	if task, err := proc.ReadTask(pid); err == nil && task.PPID == parent {
		r.early.Do(func() { err = r.guard.Watch(pid) })
		if err != nil {
			return err
		}
	}
	return r.guard.Hold(fd)
}

// hasMemory says whether any memory comes from Stasis and not from CRIU.
func (r *restore) hasMemory() bool { return len(r.checkpoint.PIDs()) > 0 }

func (r *restore) filled(done, total int64) {
	if r.opts.Progress != nil {
		r.opts.Progress(Progress{Step: StepFill, Done: done, Total: total})
	}
}

// startCRIU starts CRIU for the restore.
func (r *restore) startCRIU() (*criu.Session, error) {
	opts, files, err := r.criuOpts.Build(r.work.Path())
	if err != nil {
		return nil, err
	}
	sibling, lazy := true, r.pager != nil
	opts.RstSibling, opts.LazyPages = &sibling, &lazy
	if err := r.prepareArm(); err != nil {
		return nil, err
	}
	request := criu.Request{
		Opts: opts, WorkDir: r.work.Path(), LogName: restoreLog, Files: files, Raw: r.criuOpts.Raw, Sibling: r.opts.Sibling, Arm: r.arm,
	}
	if r.criuOpts.ShellJob {
		// CRIU gives the tree the terminal that it has itself.
		tty, err := os.Open("/dev/tty")
		if err != nil {
			return nil, fmt.Errorf("the tree was dumped as a shell job, so it has to be restored from a terminal: %w", err)
		}
		defer tty.Close()
		request.Stdin = tty
	}
	return r.criu.Start(request)
}

// explained adds what is the reason for many failures of CRIU, and that it does
// not name: it has restored mounts to where other files are.
func (r *restore) explained(err error) error {
	processes := r.checkpoint.Manifest().Processes
	if err == nil || r.criuOpts.Root != "" || len(processes) == 0 || !slices.Contains(processes[0].OwnNamespaces, "mnt") {
		return err
	}
	return fmt.Errorf("%w; the tree has a mount namespace of its own: if it had another root file system, mount that somewhere and name the place by --root", err)
}

// pagerFailed gives the error of memory that could not be put in place. It is
// the reason for all that came after it.
func (r *restore) pagerFailed() error {
	if r.pager == nil {
		return nil
	}
	return r.memoryError(r.pager.Err())
}

// memoryError is about damage where the checkpoint is to blame.
func (r *restore) memoryError(err error) error {
	var kind error
	if damage := (*image.DamageError)(nil); errors.As(err, &damage) {
		kind = ErrDamaged
	}
	return r.fail(StepFill, kind, err)
}

// killTree ends what a failed restore left. CRIU kills what it has not let go;
// a lazily restored tree runs already.
func (r *restore) killTree() error {
	if r.result.PID == 0 {
		return nil
	}
	tree, err := proc.Tree(r.result.PID)
	if errors.Is(err, proc.ErrGone) {
		return nil
	}
	if err != nil {
		tree = []*proc.Task{{PID: r.result.PID}} // the guard, which fires next, tries to find the others
	}
	for _, t := range tree {
		if killErr := unix.Kill(t.PID, unix.SIGKILL); killErr != nil && !errors.Is(killErr, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("process %d of the failed restore could not be killed: %w", t.PID, killErr))
		}
	}
	return err
}

// cleanUp leaves nothing behind but the tree of a restore that succeeded. The
// guard goes first when the restore failed: the tree must not be let go with
// memory missing.
func (r *restore) cleanUp() {
	if r.guard == nil && r.guardStarts != nil && !r.done {
		r.guard, _ = r.guardStarts() // it had nothing to watch: the restore failed before
	}
	if r.guard != nil {
		_ = r.guard.Fire() // it fires as well when it cannot be told
	}
	r.endArm()
	if r.pager != nil {
		r.pager.Close()
	}
	if r.work != nil {
		_ = r.work.Remove() // the next restore sweeps what stays
	}
	if r.checkpoint != nil {
		r.checkpoint.Close()
	}
	if r.lock != nil {
		_ = r.lock.Unlock()
	}
}

func (r *restore) pids() []int {
	var list []int
	for _, p := range r.checkpoint.Manifest().Processes {
		list = append(list, p.PID)
	}
	return list
}

// criuOptionsOf are the options of the dump, which the restore needs as well.
func criuOptionsOf(m *Manifest) (CRIUOptions, error) {
	var o CRIUOptions
	if raw := m.Options[optionsOfCRIU]; raw != "" {
		if err := json.Unmarshal([]byte(raw), &o); err != nil {
			return o, fmt.Errorf("the options in the manifest: %w", err)
		}
	}
	return o, nil
}

// howCRIUEnded drops the exit status of CRIU, whose reply has said it all, but
// for a signal that kept it from a reply. Its log is in the work folder.
func howCRIUEnded(err, closed error, log string) error {
	if err != nil && criu.WasKilled(closed) {
		return criu.HowKilled(closed, log)
	}
	if exit := (*exec.ExitError)(nil); errors.As(closed, &exit) {
		return nil
	}
	return closed
}
