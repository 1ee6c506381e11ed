package stasis

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"stasis/internal/chain"
	"stasis/internal/criu"
	"stasis/internal/guard"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/pager"
	"stasis/internal/proc"
	"stasis/internal/settings"
	"stasis/internal/store"
	"stasis/internal/track"
	"stasis/internal/workdir"
)

// RestoreOptions says what to restore and how. Dir or Source is needed.
type RestoreOptions struct {
	Dir    string // folder of the checkpoint
	Source Source // instead of Dir
	// Near are folders in which the ancestors of a chained checkpoint are
	// looked for, besides those where the checkpoint says that they are and the
	// folders beside Dir. Each is a checkpoint's folder or a folder of those.
	Near []string

	// Streams, if not 0, has to be the number of shards that the checkpoint
	// has. Nobody needs to give it.
	Streams int
	// Lazy lets the tree run at once and brings its memory afterwards, what it
	// touches first.
	Lazy bool
	// Force restores although the checks found a conflict that CRIU might
	// still cope with, such as another kernel or a changed file.
	Force bool

	// Track keeps track of what the tree writes from its first instruction on,
	// so that a dump with this checkpoint as its parent copies only that, as with
	// DumpOptions.Track. A lazy restore cannot: the next dump then compares all
	// memory.
	Track bool

	// Sibling makes the root of the tree a child of this process' parent.
	Sibling bool

	CRIUPath string // program; "": the first that is new enough
	// AdjustCRIU, if set, changes the options that the dump was made with.
	AdjustCRIU func(*CRIUOptions)

	Progress func(Progress)   // as for a dump
	AtStep   func(Step) error // as for a dump
	// Resumed, if set, is called when the tree runs, with Lazy long before
	// Restore returns. The result has no Took yet.
	Resumed func(r *RestoreResult)
}

// Source is a checkpoint that can be read; see [OpenFolder].
type Source = store.Source

// OpenFolder opens the checkpoint in a folder; nothing of it is checked yet.
func OpenFolder(path string) (Source, error) {
	folder, err := store.OpenFolder(path)
	if err != nil {
		return nil, err
	}
	return folder, nil
}

// RestoreResult tells what a restore brought back.
type RestoreResult struct {
	PID         int           `json:"pid"`  // of the root, as this machine sees it
	PIDs        []int         `json:"pids"` // of all processes, as they see themselves
	Manifest    *Manifest     `json:"-"`
	BytesMemory int64         `json:"bytes_memory"`       // put in place
	Took        time.Duration `json:"took_ns"`            // until all memory was in place
	ToResume    time.Duration `json:"to_resume_ns"`       // until the tree ran
	Warnings    []string      `json:"warnings,omitempty"` // what was not as on the machine of the checkpoint
}

// Restore brings a process tree back from a checkpoint. The root of the tree
// becomes a child of the calling process, which has to wait for it, or to end.
//
// It returns when all memory is in place. When it fails, nothing of the tree is
// left running. No process runs on memory that was not verified: a page of a
// damaged checkpoint is never given to a process, and the tree is killed
// instead. The error wraps ErrInput, ErrDamaged, or ErrConflict where something
// that runs here is in the way.
//
// The processes get the identity and the files that stand in the checkpoint, so
// whoever can write it decides as whom they run. Who wrote it is for the caller
// to know: Restore does not ask.
func Restore(ctx context.Context, opts RestoreOptions) (_ *RestoreResult, err error) {
	r := &restore{opts: opts, begun: time.Now(), spans: beginSpans(ctx, "stasis.restore")}
	defer func() { r.endSpans(err) }()
	defer r.cleanUp()
	for _, step := range []struct {
		name Step
		work func(context.Context) error
	}{
		{StepOpen, r.open},
		{StepCheck, r.check},
		{StepUnpack, r.unpack},
		{StepRestore, r.restoreState},
	} {
		if err := r.do(step.name, func() error { return step.work(ctx) }); err != nil {
			return nil, errors.Join(err, r.killTree())
		}
	}
	if r.opts.Lazy {
		if err := r.do(StepFill, func() error { return r.fill(ctx) }); err != nil {
			return nil, errors.Join(err, r.killTree())
		}
	}
	return r.finish()
}

// restore is one restore under way.
type restore struct {
	opts  RestoreOptions
	begun time.Time
	spans *spans // that are open; nil where nobody listens

	lock       *chain.Lock // nil when the checkpoint is not in a folder
	checkpoint *reader.Checkpoint
	criuOpts   CRIUOptions
	criu       *criu.Binary
	work       *workdir.Dir
	pager      *pager.Pager // nil when CRIU has all memory
	guard      *guard.Guard
	early      sync.Once // the root is watched before CRIU tells of it
	result     RestoreResult
	done       bool

	arm      *criu.Arm                   // nil when there is nothing to do in threads that are let go
	trackers map[int]*track.WriteProtect // with Track; by the pid that this machine sees; filled while CRIU lets the tree go

	applier       settings.Applier
	eventfds      []criu.Eventfd          // that CRIU is to make in another way
	guards        map[int][]proc.Range    // that CRIU cannot install; by the pid inside
	personalities map[int]*image.Settings // of processes that need a call for them; by the pid inside

	guardStarts func() (*guard.Guard, error) // nil before there is a checkpoint
}

// open reads the manifest and the index, and checks both.
func (r *restore) open(ctx context.Context) error {
	src, err := r.openCheckpoint(ctx)
	if err != nil {
		return err
	}
	m := r.checkpoint.Manifest()
	if m.Kind == image.KindPreDump {
		return r.fail(StepOpen, ErrInput, errors.New(whyNoProcesses(src.Name(), m)))
	}
	if n := len(m.Shards); r.opts.Streams != 0 && r.opts.Streams != n {
		return r.fail(StepOpen, ErrInput, fmt.Errorf("%s has %d streams, not %d: say --stream %d, or leave it out", src.Name(), n, r.opts.Streams, n))
	}
	if r.criuOpts, err = criuOptionsOf(m); err != nil {
		return r.fail(StepOpen, ErrDamaged, err)
	}
	if r.opts.AdjustCRIU != nil {
		r.opts.AdjustCRIU(&r.criuOpts)
	}
	if err := r.criuOpts.Validate(); err != nil {
		return r.fail(StepOpen, ErrInput, err)
	}
	if r.criu, err = criu.Find(ctx, r.opts.CRIUPath); err != nil {
		return r.fail(StepOpen, ErrInput, err)
	}
	return nil
}

// openCheckpoint opens the checkpoint with its ancestors, all of which have to
// be there.
func (r *restore) openCheckpoint(ctx context.Context) (src store.Source, err error) {
	var missing []*chain.MissingError
	if src = r.opts.Source; src == nil {
		if r.lock, err = chain.LockShared(ctx, r.opts.Dir, r.opts.Near...); err != nil {
			return nil, r.fail(StepOpen, kindOfOpening(err), err)
		}
		r.guardStarts = inBackground(guard.Start) // it takes as long as the next steps
		r.checkpoint, err = r.lock.OpenEarly()
		src, missing = r.lock.Source(), r.lock.Missing()
	} else {
		near := r.opts.Dir
		if len(r.opts.Near) > 0 {
			near = r.opts.Near[0]
		}
		r.guardStarts = inBackground(guard.Start)
		if r.checkpoint, err = chain.OpenSource(src, near, r.opts.Near...); err == nil {
			missing = chain.Missing(r.checkpoint.Manifest(), near, r.opts.Near...)
		}
	}
	switch {
	case err != nil:
		return nil, r.fail(StepOpen, ErrDamaged, err)
	case len(missing) > 0:
		return nil, r.fail(StepOpen, ErrDamaged, missing[0])
	}
	return src, nil
}

// kindOfOpening tells a checkpoint that cannot be read from one that is not there.
func kindOfOpening(err error) error {
	var version *image.VersionError
	if errors.As(err, &version) {
		return ErrDamaged
	}
	if kind := kindOfReading(err); kind != nil {
		return kind
	}
	return ErrInput
}

// whyNoProcesses says why there is nothing to restore in a folder with memory alone.
func whyNoProcesses(dir string, m *Manifest) string {
	if m.Engine == string(EngineCRIU) { // a pre-dump by Stasis leaves memory to no CRIU
		return fmt.Sprintf("%s holds memory only, which a page server took: copy CRIU's other images of that dump to it, make a checkpoint of both by "+
			"\"stasis import %[1]s\", and restore that", dir)
	}
	return fmt.Sprintf("%s is a pre-dump: it holds memory only; restore a dump that was made on top of it", dir)
}

// none is the result of work that has none.
type none struct{}

// inBackground begins some work; the returned function waits for its end.
func inBackground[T any](work func() (T, error)) func() (T, error) {
	once := sync.OnceValues(work)
	go func() { _, _ = once() }()
	return once
}

// unpack lays CRIU's images out in a work folder, and makes their page maps
// lazy where Stasis brings the memory.
func (r *restore) unpack(context.Context) error {
	var size int64
	for _, file := range r.checkpoint.Files() {
		size += file.Size
	}
	var err error
	if r.work, err = workdir.New(r.opts.Dir, uint64(size)); err != nil {
		return err
	}
	for _, file := range r.checkpoint.Files() {
		if err := r.unpackFile(file.Name); err != nil {
			return err
		}
	}
	if err := errors.Join(r.mendImages(), r.removeGhosts()); err != nil {
		return err
	}
	if !r.hasMemory() {
		return nil
	}
	// All processes, those without a page of Stasis too: CRIU restores a tree
	// lazily as a whole, and would skip what it marked lazy itself.
	processes, err := criu.Processes(r.work.Path())
	if err != nil {
		return r.fail(StepUnpack, ErrDamaged, err)
	}
	for _, process := range processes {
		pid := process.PID
		if !r.hasFile(criu.PagemapImage(pid)) {
			continue // a zombie
		}
		if err := criu.DropLazy(r.work.Path(), pid); err != nil {
			return err
		}
	}
	return nil
}

func (r *restore) hasFile(name string) bool {
	return slices.ContainsFunc(r.checkpoint.Files(), func(f image.FileInfo) bool { return f.Name == name })
}

func (r *restore) unpackFile(name string) error {
	file, err := os.OpenFile(r.work.Path()+"/"+name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("unpack CRIU's image: %w", err)
	}
	if err := r.checkpoint.WriteFile(name, file); err != nil {
		return errors.Join(r.fail(StepUnpack, ErrDamaged, err), file.Close())
	}
	return file.Close()
}

// restoreState lets CRIU restore the tree and, unless it is a lazy restore,
// fills its memory at the last moment before the tree runs. Where somebody was
// given a number of the tree after it had been looked for, it is done again.
func (r *restore) restoreState(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := r.restoreOnce(ctx)
		if err == nil || attempt == restoreAttempts || !criu.NumberTaken(err) {
			return err
		}
		if err := r.startOver(ctx, err); err != nil {
			return err
		}
	}
}

func (r *restore) restoreOnce(ctx context.Context) (err error) {
	if r.guard, err = r.guardStarts(); err != nil {
		return err
	}
	if err := r.startPager(); err != nil {
		return err
	}
	session, err := r.startCRIU()
	if err != nil {
		return err
	}
	// CRIU has no request yet, and ends if this process does. From here on it waits
	// for the guard then, and lets nobody go.
	if err := errors.Join(r.guard.Watch(session.PID()), session.Keep(r.guard.Keep)); err != nil {
		session.Abandon()
		return errors.Join(err, session.Close())
	}
	pid, err := session.Restore(ctx, func(ctx context.Context, at criu.Notification, pid int) error {
		switch at {
		case criu.PreRestore:
			return r.expectRoot()
		case criu.NamespacesMade, criu.PostRestore: // the first only where namespaces are made
			return r.rootIs(pid)
		case criu.PreResume:
			return r.beforeResume(ctx, session)
		}
		return nil
	})
	if pid > 0 {
		r.result.PID = pid
	}
	err = r.explained(errors.Join(err, howCRIUEnded(err, session.Close(), filepath.Join(r.work.Path(), restoreLog))))
	if failed := r.pagerFailed(); failed != nil {
		return failed // CRIU only noticed that the tree was ended for it
	}
	if err == nil {
		r.resumed()
	}
	if errors.Is(err, criu.ErrRequest) {
		return r.fail(StepRestore, ErrInput, err)
	}
	return r.fail(StepRestore, nil, err)
}

// expectRoot tells the guard of the tree before it is born: all processes of it
// have CRIU's log open until CRIU has told who the root is.
func (r *restore) expectRoot() error {
	return r.guard.Expect(filepath.Join(r.work.Path(), restoreLog))
}

// rootIs notes the root of the tree, whose memory is not filled yet, and puts
// the tree under guard.
func (r *restore) rootIs(pid int) error {
	r.result.PID = pid
	return r.guard.Watch(pid)
}

// beforeResume fills the memory of a tree that stands still for the last time,
// or sees that it can be filled.
// CRIU does not listen to a failure here and would let the tree go, so it is
// ended on the spot.
func (r *restore) beforeResume(ctx context.Context, session *criu.Session) error {
	r.applySettings()
	var err error
	switch {
	case !r.opts.Lazy:
		err = r.do(StepFill, func() error { return r.fill(ctx) })
	case r.pager != nil:
		err = r.memoryError(r.pager.Ready(ctx))
	}
	if err != nil {
		err = errors.Join(err, r.killTree())
		session.Abandon()
	}
	return err
}

// fill puts all memory in place.
func (r *restore) fill(ctx context.Context) error {
	if r.pager == nil {
		return nil
	}
	return r.memoryError(r.pager.Fill(ctx))
}

func (r *restore) resumed() {
	r.result.ToResume = time.Since(r.begun)
	r.result.Warnings = append(r.result.Warnings, r.applier.Notes()...)
	r.result.Manifest = r.checkpoint.Manifest()
	r.result.PIDs = r.pids()
	r.result.BytesMemory = r.result.Manifest.Figures.BytesMemory
	if r.opts.Resumed != nil {
		r.opts.Resumed(&r.result)
	}
}

// finish ends the guard: from here on the tree needs nobody.
func (r *restore) finish() (*RestoreResult, error) {
	if err := r.pagerFailed(); err != nil {
		return nil, errors.Join(err, r.killTree())
	}
	if err := r.guard.Disarm(); err != nil {
		return nil, errors.Join(r.fail(StepResume, nil, err), r.killTree())
	}
	r.guard = nil
	r.keepTrackers()
	r.done = true
	r.result.Took = time.Since(r.begun)
	return &r.result, nil
}

// do runs a step; its error says which step it was.
func (r *restore) do(step Step, work func() error) (err error) {
	r.spans.begin("restore." + string(step))
	defer func() { r.spans.end(err) }()
	if r.opts.Progress != nil {
		r.opts.Progress(Progress{Step: step})
	}
	if r.opts.AtStep != nil {
		if err := r.opts.AtStep(step); err != nil {
			return r.fail(step, nil, err)
		}
	}
	return r.fail(step, nil, work())
}

func (r *restore) fail(step Step, kind, err error) error {
	if err == nil {
		return nil
	}
	if inner := (*stepError)(nil); errors.As(err, &inner) {
		return err
	}
	return &stepError{step: step, kind: kind, err: fmt.Errorf("restore: %w", err)}
}
