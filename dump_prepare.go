package stasis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"stasis/internal/capture"
	"stasis/internal/chain"
	"stasis/internal/codec"
	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/inject"
	"stasis/internal/netguard"
	"stasis/internal/proc"
	"stasis/internal/store"
	"stasis/internal/track"
	"stasis/internal/workdir"
)

// dump is one dump under way. Its fields are filled step by step, in this
// order; no two goroutines work on it at once, except for the copiers, which
// have their own.
type dump struct {
	opts  DumpOptions
	begun time.Time
	exact bool // trust nothing that was read before the freeze

	preDump bool     // memory only, with nothing frozen
	notes   []string // for the result

	reporting sync.Mutex // held while opts.Progress runs
	spans     *spans     // that are open; nil where nobody listens

	// prepare
	criu        *criu.Binary
	engine      Engine
	lock        *treeLock
	target      store.Target
	writer      *writer.Writer
	work        *workdir.Dir
	trackerKind track.Kind      // how writes are tracked
	injector    *inject.Helper  // arms the trackers, and never dies halfway; nil with EngineCRIU
	blind       *criu.Blind     // with EngineBlind
	lazy        *criu.LazyDump  // with EngineLazyPages
	summary     []image.Process // of the tree, for the manifest
	netguard    *netguard.Guard // nil where no connection can be locked

	// prepare, where it builds on another checkpoint
	parent     *reader.Checkpoint
	parentLock *chain.Lock
	kept       bool                       // a keeper has trackers of the tree
	adopted    map[identity]track.Tracker // trackers that were kept since the parent
	// disarmed: the keeper has been told that its trackers are out of use.
	disarmed bool

	inParent map[int][]image.Range // the pages that the parent has, by the pid inside; filled when they are asked for

	// while running
	processes map[int]*process // by pid
	round     int              // number of the copy that is next
	rounds    []image.Round
	dropped   []capture.Dropped // pages that no round has copied: they could not be read, or are left to the freeze
	expected  int64             // bytes that the freeze will have to copy, or may

	// while frozen
	frozen time.Time
	tree   []*proc.Task
	hidden map[int][]proc.Range
	last   func() (none, error) // waits for the last copy, which runs beside CRIU
	buffer *capture.Buffer
	// settings waits for what CRIU does not keep of the processes, by the pid inside.
	settings func() (map[int]*image.Settings, error)
	present  map[int][]image.Range // by the pid inside
	dirty    image.Round

	// at the end
	thawed   time.Time
	manifest *Manifest
}

// process is one process of the tree while it is followed.
type process struct {
	task    *proc.Task
	tracker track.Tracker  // nil: its memory is copied during the freeze
	maps    []proc.Mapping // as smaps showed them in the last round
	ours    []proc.Mapping // those of maps that Stasis copies
	frozen  []proc.Mapping // as maps shows them in the freeze

	// looked has the mappings, with a tracker that was kept, whose unchanged
	// pages have been compared with what the parent has; nil with a new tracker.
	looked map[proc.Range]bool
	// lostSeen is how many of the parent's blocks that can't be read were
	// taken into account: see lostPages.
	lostSeen int

	direct bool // it reads files past the page cache

	described []proc.Mapping // what CRIU was told instead of smaps; nil: nothing
}

// prepare checks the request and the tree, and opens everything that the dump
// needs. Nothing of it touches the tree.
func (d *dump) prepare(ctx context.Context) error {
	if err := d.opts.complete(); err != nil {
		return d.fail(StepPrepare, ErrInput, err)
	}
	var err error
	if d.tree, err = proc.Tree(d.opts.PID); errors.Is(err, proc.ErrGone) {
		return d.fail(StepPrepare, ErrInput, fmt.Errorf("there is no process %d", d.opts.PID))
	} else if err != nil {
		return err
	}
	if err := dumpable(d.tree); err != nil {
		return d.fail(StepPrepare, ErrProcess, err)
	}
	var kind error
	if d.lock, kind, err = lockTree(d.tree[0]); err != nil {
		return d.fail(StepPrepare, kind, err)
	}
	if err := d.prepareCRIU(ctx); err != nil {
		return err
	}
	if d.summary, err = summarize(d.tree); err != nil {
		return err
	}
	if err := d.openParent(ctx); err != nil {
		return err
	}
	if d.trackerKind, err = track.Choose(track.Kind(d.opts.Tracker)); err != nil {
		return d.fail(StepPrepare, ErrInput, err)
	}
	if d.trackerKind == track.KindSoftDirty {
		if err := track.SoftDirtyComplete(); err != nil {
			d.note("tracker %s: %v", d.trackerKind, err)
		}
	}
	if d.preDump && d.trackerKind == track.KindNone {
		return d.fail(StepPrepare, ErrInput, errors.New("a pre-dump is of no use where nothing tracks what the process writes from then on: dump at once"))
	}
	if d.engine != EngineCRIU {
		if d.injector, err = inject.StartHelper(); err != nil {
			return err
		}
	}
	if err := d.takeUp(); err != nil {
		return err
	}
	return d.openCheckpoint(ctx)
}

// prepareCRIU finds CRIU and a folder for its images. A pre-dump does without.
func (d *dump) prepareCRIU(ctx context.Context) (err error) {
	if d.preDump {
		d.engine = EngineBlind // as good as any: it is CRIU's business
		return nil
	}
	if d.criu, err = criu.Find(ctx, d.opts.CRIUPath); err != nil {
		return d.fail(StepPrepare, ErrInput, err)
	}
	if d.engine, err = chooseEngine(d.opts.Engine, d.criu); err != nil {
		return d.fail(StepPrepare, ErrInput, err)
	}
	d.work, err = workdir.New(d.opts.Dir, visibleToCRIU(d.tree, d.engine))
	return err
}

// openCheckpoint opens the place where the checkpoint goes.
func (d *dump) openCheckpoint(ctx context.Context) error {
	compressor, err := codec.New(d.opts.Compression, d.opts.Level)
	if err != nil {
		return d.fail(StepPrepare, ErrInput, err)
	}
	if d.target = d.opts.Target; d.target == nil {
		if d.target, err = store.CreateFolder(d.opts.Dir); err != nil {
			return d.fail(StepPrepare, ErrInput, err)
		}
	}
	if d.opts.Bandwidth > 0 {
		d.target = store.Limit(ctx, d.target, d.opts.Bandwidth)
	}
	if d.opts.Dir != "" {
		d.target = d.parentLock.Noting(d.target, d.opts.Dir)
	}
	var id [16]byte
	rand.Read(id[:])
	d.writer, err = writer.New(d.target, writer.Options{
		Shards: d.opts.Streams, Codec: compressor, ID: id, Parent: d.parent, ParentPath: d.parentPath(),
	})
	if err != nil {
		return errors.Join(err, d.target.Abort())
	}
	return nil
}

// complete fills in the defaults and refuses what makes no sense.
func (o *DumpOptions) complete() error {
	switch {
	case o.PID <= 0:
		return fmt.Errorf("process id %d: it must be greater than 0", o.PID)
	case o.Dir == "" && o.Target == nil:
		return errors.New("no place for the checkpoint: give a folder")
	case o.Streams < 0 || o.Streams > image.MaxShards:
		return fmt.Errorf("%d streams: it must be 1 to %d, or 0 for one for each CPU", o.Streams, image.MaxShards)
	case o.MaxChain < 0:
		return fmt.Errorf("a chain of at most %d checkpoints: it must not be negative", o.MaxChain)
	case o.MaxRounds < 0:
		return fmt.Errorf("%d rounds: it must not be negative", o.MaxRounds)
	case o.Nice < 0 || o.Nice > 19:
		return fmt.Errorf("a priority of %d: it must be 0 to 19, as in nice(1)", o.Nice)
	case o.Bandwidth < 0:
		return fmt.Errorf("a bandwidth of %d bytes per second: it must not be negative", o.Bandwidth)
	case o.FinalBuffer < 0:
		return fmt.Errorf("a final buffer of %d bytes: it must not be negative", o.FinalBuffer)
	}
	setDefault(&o.Streams, min(runtime.NumCPU(), image.MaxShards))
	setDefault(&o.Compression, DefaultCompression)
	setDefault(&o.After, AfterKill)
	setDefault(&o.Engine, EngineAuto)
	setDefault(&o.MaxRounds, DefaultRounds)
	setDefault(&o.MaxPause, DefaultMaxPause)
	setDefault(&o.FinalBuffer, DefaultFinalBuffer)
	o.Track = o.Track && o.After != AfterKill // nothing will be left to track
	if !slices.Contains([]After{AfterKill, AfterRun, AfterStop}, o.After) {
		return fmt.Errorf("after the dump %q: it is %s, %s or %s", o.After, AfterKill, AfterRun, AfterStop)
	}
	return o.CRIU.Validate()
}

func setDefault[T comparable](into *T, value T) {
	var zero T
	if *into == zero {
		*into = value
	}
}

// chooseEngine takes the best engine that works here, or checks that the one
// asked for does.
func chooseEngine(asked Engine, c *criu.Binary) (Engine, error) {
	switch asked {
	case EngineCRIU, EngineLazyPages:
		return asked, nil
	case EngineBlind:
		if !c.Dynamic {
			return "", fmt.Errorf("engine %s: no library can be preloaded into %s, which is static or setuid; use engine %s", asked, c.Path, EngineLazyPages)
		}
		if !proc.CanScan() {
			return "", fmt.Errorf("engine %s: this kernel lacks PAGEMAP_SCAN (Linux 6.7); use engine %s", asked, EngineLazyPages)
		}
		return asked, nil
	case EngineAuto:
		switch {
		case !c.Dynamic || !proc.CanScan(): // the library works on PAGEMAP_SCAN
			return EngineLazyPages, nil
		}
		return EngineBlind, nil
	}
	return "", fmt.Errorf("engine %q: it is one of %s, %s, %s, %s", asked, EngineAuto, EngineBlind, EngineLazyPages, EngineCRIU)
}

// dumpable finds early what CRIU would only find with the tree frozen.
func dumpable(tree []*proc.Task) error {
	for _, t := range tree {
		if t.TracerPID != 0 {
			return fmt.Errorf("process %d (%s) is traced by process %d (%s): end that debugger first", t.PID, t.Comm, t.TracerPID, nameOf(t.TracerPID))
		}
	}
	if root := tree[0]; root.Zombie() {
		return fmt.Errorf("process %d (%s) has ended and waits for its parent %d", root.PID, root.Comm, root.PPID)
	} else if root.Exe == "" {
		return fmt.Errorf("process %d (%s) is a thread of the kernel", root.PID, root.Comm)
	}
	return nil
}

func nameOf(pid int) string {
	if t, err := proc.ReadTask(pid); err == nil {
		return t.Comm
	}
	return "gone"
}

// visibleToCRIU estimates the bytes that CRIU will write: memory that is
// neither hidden nor a file's.
func visibleToCRIU(tree []*proc.Task, engine Engine) uint64 {
	var total uint64
	for _, t := range tree {
		maps, err := proc.Smaps(t.PID)
		if err != nil {
			continue
		}
		for _, m := range maps {
			if engine == EngineCRIU || !capture.Eligible(m) || m.SharedAnon > 0 {
				total += m.AnonBytes + m.Swapped
				if !m.Private() {
					total += m.Resident
				}
			}
		}
	}
	return total
}

// startCRIU starts CRIU, which waits for its request.
func (d *dump) startCRIU() (*criu.Session, error) {
	opts, files, err := d.opts.CRIU.Build(d.work.Path())
	if err != nil {
		return nil, err
	}
	pid, run := int32(d.opts.PID), true
	opts.Pid, opts.LeaveRunning = &pid, &run
	if d.engine == EngineBlind {
		if d.blind, err = criu.NewBlind(); err != nil {
			return nil, err
		}
	}
	if d.engine == EngineLazyPages {
		if d.lazy, err = criu.NewLazyDump(); err != nil {
			return nil, err
		}
		if files, err = d.lazy.Arrange(opts, files, d.work.Path()); err != nil {
			return nil, err
		}
	}
	return d.criu.Start(criu.Request{Opts: opts, WorkDir: d.work.Path(), LogName: dumpLog, Blind: d.blind, Files: files, Raw: d.opts.CRIU.Raw})
}

// cleanUp leaves nothing behind. After a success it only frees what the dump
// held.
func (d *dump) cleanUp() {
	d.endNetguard()
	if d.last != nil {
		_, _ = d.last() // a failed dump may still be copying
	}
	if d.buffer != nil {
		d.buffer.Free()
	}
	for _, p := range d.processes {
		p.close()
	}
	for _, tracker := range d.adopted {
		tracker.Close() // of processes that have ended
	}
	if d.injector != nil {
		d.injector.Close()
	}
	d.endTracking()
	if d.writer != nil && d.manifest == nil {
		_ = d.writer.Abort() // the dump has failed for another reason already
	}
	_ = d.leaveParent()
	if d.blind != nil {
		d.blind.Close()
	}
	if d.lazy != nil {
		d.lazy.Close()
	}
	if d.work != nil {
		_ = d.work.Remove() // the next dump sweeps what stays
	}
	if d.lock != nil {
		d.lock.release()
	}
}
