package stasis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/proc"
)

const (
	// pidLimit bounds the wait for processes that have been killed and still
	// hold their pids. A process 1 that looks for orphans only now and then
	// takes some seconds.
	pidLimit = 10 * time.Second
	// pidShort is the limit where the restore cannot go on anyway.
	pidShort = 500 * time.Millisecond
	pidPause = 5 * time.Millisecond

	// listed is how many conflicts of one kind are told one by one.
	listed = 10
)

// check looks for what stands against the restore before anything is touched,
// and reports all of it at once. It reads no file's content: it costs a few
// milliseconds, unless it has to wait for pids.
func (r *restore) check(ctx context.Context) error {
	m := r.checkpoint.Manifest()
	here, err := hostFacts()
	if err != nil {
		return err
	}
	found := &conflicts{force: r.opts.Force}
	found.checkHost(m.Host, here)
	found.checkCPU(m.Host, here, r.criuOpts.CPUCap)
	found.checkCRIU(m.Host.CRIUVersion, r.criu.VersionString())
	found.checkRoom(r.opts.Dir, m.Figures, r.checkpoint.Files())
	if err := r.checkFiles(found, m, m.Host.Hostname == here.Hostname); err != nil {
		return r.fail(StepCheck, ErrDamaged, err)
	}
	if err := r.checkInherited(found, m); err != nil {
		return r.fail(StepCheck, ErrDamaged, err)
	}
	if err := found.checkPIDs(ctx, m); err != nil {
		return err
	}
	found.checkPorts(m)
	if !r.criuOpts.TCPClose {
		if err := found.checkConnections(ctx, m); err != nil {
			return err
		}
	}
	r.result.Warnings = append(r.result.Warnings, found.warnings...)
	return r.fail(StepCheck, ErrConflict, errors.Join(found.errors...))
}

// conflicts collects what stands against a restore.
type conflicts struct {
	force    bool
	errors   []error
	warnings []string
	holders  map[int]bool // processes that have pids of the tree
}

// refuse notes a conflict that nothing overrides.
func (c *conflicts) refuse(format string, args ...any) {
	c.errors = append(c.errors, fmt.Errorf(format, args...))
}

// object notes a conflict that the program might cope with.
func (c *conflicts) object(format string, args ...any) {
	if !c.force {
		format += ", or restore with --force"
	}
	c.foresee(format, args...)
}

// foresee notes a conflict that CRIU would run into as well. Nobody is told to
// force that, but who does gets CRIU's own opinion.
func (c *conflicts) foresee(format string, args ...any) {
	if c.force {
		c.warn(format, args...)
		return
	}
	c.refuse(format, args...)
}

func (c *conflicts) warn(format string, args ...any) {
	c.warnings = append(c.warnings, fmt.Sprintf(format, args...))
}

// checkPIDs finds out whether every pid and tid of the tree is free. Those of
// killed processes get free when their parent looks, which is waited for.
func (c *conflicts) checkPIDs(ctx context.Context, m *Manifest) error {
	numbers := numbersOf(m)
	begun, limit := time.Now(), pidLimit
	if len(c.errors) > 0 {
		limit = pidShort
	}
	var waited map[string]bool
	for {
		holders, err := proc.Holders(numbers)
		if err != nil {
			return fmt.Errorf("look for the pids of the tree: %w", err)
		}
		if len(holders) == 0 || !onlyDying(holders) || time.Since(begun) > limit {
			c.tellHolders(holders)
			break
		}
		if waited == nil {
			waited = make(map[string]bool)
		}
		for _, h := range holders {
			if h.Use == proc.UseEnded {
				continue // it is soon over, and not worth a word
			}
			waited[fmt.Sprintf("process %d (%s)", h.PID, h.Comm)] = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for killed processes to leave their pids: %w", ctx.Err())
		case <-time.After(pidPause):
		}
	}
	if len(waited) > 0 && len(c.errors) == 0 {
		c.warn("waited %.1f s until %s, which had ended, left its pid", time.Since(begun).Seconds(), some(waited))
	}
	return nil
}

// numbersOf are the pids and tids that have to be free here: not those in a pid
// namespace that is restored with its processes.
func numbersOf(m *Manifest) []int {
	var numbers []int
	for _, p := range m.Processes {
		if slices.Contains(p.OwnNamespaces, "pid") {
			continue
		}
		numbers = append(numbers, p.PID)
		for _, tid := range p.Threads {
			if tid != p.PID {
				numbers = append(numbers, tid)
			}
		}
	}
	return numbers
}

func onlyDying(holders []proc.Holder) bool {
	return !slices.ContainsFunc(holders, func(h proc.Holder) bool { return !h.Dying })
}

// tellHolders says who holds pids, one line for each process.
func (c *conflicts) tellHolders(holders []proc.Holder) {
	held := make(map[int][]proc.Holder)
	var order []int
	for _, h := range holders {
		if held[h.PID] == nil {
			order = append(order, h.PID)
		}
		held[h.PID] = append(held[h.PID], h)
	}
	c.holders = make(map[int]bool, len(order))
	for i, pid := range order {
		c.holders[pid] = true
		if i == listed {
			c.refuse("and %d more processes have pids of the tree", len(order)-listed)
			return
		}
		c.refuse("%s", tellHolder(held[pid]))
	}
}

func tellHolder(held []proc.Holder) string {
	h := held[0]
	if h.Use == proc.UseEnded {
		return fmt.Sprintf("the kernel still has the pid %d in use, which the restored tree needs, although its process has ended: restore again", h.Number)
	}
	who := fmt.Sprintf("process %d (%s)", h.PID, h.Comm)
	what := "the pid " + fmt.Sprint(h.Number)
	switch h.Use {
	case proc.UseThread:
		what = fmt.Sprintf("the thread id %d", h.Number)
	case proc.UseGroup:
		what = fmt.Sprintf("the pid %d as the number of its process group", h.Number)
	case proc.UseSession:
		what = fmt.Sprintf("the pid %d as the number of its session", h.Number)
	}
	if n := len(held) - 1; n > 0 {
		what += fmt.Sprintf(" and %d more", n)
	}
	what = who + " has " + what + ", which the restored tree needs: "
	switch {
	case h.PID == unix.Getpid():
		return what + "it is Stasis itself: run the restore again"
	case h.Dying:
		parent := "its parent"
		if t, err := proc.ReadTask(h.Parent); err == nil {
			parent = fmt.Sprintf("its parent %d (%s)", t.PID, t.Comm)
		}
		return what + "it has ended, and " + parent + " has not collected it: end that parent or let it wait(2)"
	default:
		return what + "end it, or wait until it has ended"
	}
}

// checkFiles compares the files that CRIU will open with what they were. The
// images have their sizes as of the freeze; the manifest has the times of those
// that the tree only read. On another machine a time says little.
func (r *restore) checkFiles(c *conflicts, m *Manifest, sameHost bool) error {
	if len(m.Processes) == 0 || slices.Contains(m.Processes[0].OwnNamespaces, "mnt") {
		return nil // the paths are those of mounts that are yet to be made
	}
	files, err := r.filesOfCRIU()
	if err != nil {
		return err
	}
	check := fileCheck{
		sameHost: sameHost, anyPermissions: slices.Contains(r.criuOpts.Raw, "skip-file-rwx-check"),
		written: m.Created.Add(time.Duration(m.Figures.PauseUS)*time.Microsecond + clockSlack),
		needs:   make(map[string]image.NeededFile), seen: make(map[string]bool),
	}
	for key := range r.criuOpts.InheritFDs {
		check.seen["/"+strings.TrimPrefix(key, "/")] = true
	}
	for _, p := range m.Processes {
		for _, file := range p.Needs {
			check.needs[file.Path] = file
		}
	}
	var told int
	for _, file := range files {
		tell, text := check.look(c, file)
		if text == "" {
			continue
		}
		if told++; told <= listed {
			tell("%s", text)
		}
	}
	if told > listed {
		c.foresee("and %d more files are not as they were", told-listed)
	}
	return nil
}

// filesOfCRIU reads the list of files from CRIU's images.
func (r *restore) filesOfCRIU() ([]criu.File, error) {
	var files, remaps bytes.Buffer
	if err := r.checkpoint.WriteFile(criu.FilesImage, &files); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := r.checkpoint.WriteFile(criu.RemapsImage, &remaps); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return criu.Files(files.Bytes(), remaps.Bytes())
}

// some names a few members of a set.
func some(set map[string]bool) string {
	var names []string
	for name := range set {
		names = append(names, name)
	}
	slices.Sort(names)
	if n := len(names); n > 3 {
		return strings.Join(names[:3], ", ") + fmt.Sprintf(" and %d more", n-3)
	}
	return strings.Join(names, ", ")
}
