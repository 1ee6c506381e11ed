package stasis

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/store"
)

// After says what becomes of the tree once its checkpoint exists.
type After string

// What a dump can do with the tree when it has succeeded. When it fails, the
// tree always runs on.
const (
	AfterKill  After = "kill"
	AfterRun   After = "leave-running"
	AfterStop  After = "leave-stopped"
	defaultEnd       = AfterKill
)

// DumpOptions says what to dump and how. PID and one of Dir and Target are
// needed; everything else has a default.
type DumpOptions struct {
	PID    int    // root of the tree
	Dir    string // folder of the checkpoint; made if its parent exists
	Target Target // instead of Dir: where else the checkpoint goes
	Name   string // for people; default: the command and the time

	Streams     int         // number of shards; 0: one for each CPU
	Compression string      // none, lz4, zstd, gzip or zlib; "": DefaultCompression
	Level       int         // of the codec; 0: its default
	After       After       // "": AfterKill
	Engine      Engine      // "": EngineAuto
	CRIU        CRIUOptions // stay with the checkpoint, for its restore
	CRIUPath    string      // program; "": the first that is new enough

	// Parent is the folder of a checkpoint or pre-dump of the same tree that this
	// one builds on: it holds what differs from the parent, and needs the parent
	// (and the parent's ancestors) to be restored. "": a checkpoint of its own.
	Parent string
	// Track keeps track of what is written after the dump, for one that has
	// this one as its parent. A small process, stasis-tracker, does that until
	// the tree ends; see [Trackers].
	Track bool
	// Tracker is how writes are tracked: auto, userfaultfd, soft-dirty or none;
	// "": auto, the best that works on this kernel.
	Tracker string
	// MaxChain is how many checkpoints a chain may have before a dump begins a
	// new one in spite of Parent; 0: any number.
	MaxChain int
	// AutoDedup gives back the space of what the parent and its ancestors hold
	// and this checkpoint does not need. They cannot be restored then.
	AutoDedup bool

	// MaxRounds bounds how often memory is copied while the tree runs;
	// 0: DefaultRounds.
	MaxRounds int
	// MaxPause is how long the last copy may take, as far as it can be chosen:
	// rounds go on while what is left is more; 0: DefaultMaxPause.
	MaxPause time.Duration
	// FinalBuffer bounds the RAM in bytes for the last pages; what does not
	// fit is written while the tree is frozen. 0: DefaultFinalBuffer.
	FinalBuffer int

	// Nice is how much less priority the dump has than other programs while the
	// tree runs: 0 to 19 as in nice(1). The last copy, for which the tree stands
	// still, is never slowed down.
	Nice int
	// Bandwidth is how many bytes per second are written at most; 0: no limit.
	Bandwidth int64

	// Progress, if set, is called now and then, from one goroutine at a time.
	Progress func(Progress)
	// AtStep, if set, is called as each step begins; an error fails the dump
	// there. It is how tests break things on purpose.
	AtStep func(Step) error
}

// Defaults of DumpOptions.
const (
	DefaultCompression = "lz4"
	DefaultRounds      = 8
	DefaultMaxPause    = 2 * time.Millisecond
	DefaultFinalBuffer = 256 << 20 // bytes
)

// Target is a place that a checkpoint can be written to, other than a folder;
// see [NewStream].
type Target = store.Target

// NewStream writes a checkpoint as one stream, for a pipe. The stream is whole
// when Dump returns; whether it is durable is its reader's matter.
func NewStream(w io.Writer) Target { return store.NewStream(w) }

// DumpResult tells what a dump made.
type DumpResult struct {
	Dir      string    `json:"dir,omitempty"`
	After    After     `json:"after"`
	Manifest *Manifest `json:"manifest"`
	Notes    []string  `json:"notes,omitempty"` // what went another way than was asked for

	// Freed is how many bytes of disk AutoDedup gave back, and GivenUp has the folders of the checkpoints that can't be restored any more by it.
	Freed   int64    `json:"bytes_freed,omitempty"`
	GivenUp []string `json:"given_up,omitempty"`
}

// Dump makes a checkpoint of a process tree.
//
// It returns when the checkpoint is durable and the tree has been dealt with as
// Options.After says. When it returns an error, there is no checkpoint and the
// tree runs on as before; only where the tree could not be ended at last, there
// is a checkpoint, and the error says so. Cancelling the context has the same
// effect, up to the moment of the publication.
//
// The error wraps ErrInput, ErrProcess, ErrBusy, or ErrDamaged where it is the
// parent that is damaged or incomplete.
func Dump(ctx context.Context, opts DumpOptions) (*DumpResult, error) {
	return dumpAgain(opts, func(opts DumpOptions, exact bool) (*DumpResult, error) { return dumpOnce(ctx, opts, exact) })
}

// exactTries is how often a dump is made that trusts nothing that was read before
// the freeze. The second is for a list of mappings that changed while CRIU read it.
const exactTries = 2

// dumpAgain makes a dump anew where the first one met what another one does not:
// mappings that changed around the freeze, or a parent that is damaged. Each of
// them may show when the other has been dealt with. What goes to a stream can't
// be taken back.
func dumpAgain(opts DumpOptions, once func(opts DumpOptions, exact bool) (*DumpResult, error)) (*DumpResult, error) {
	var lost error
	for exact := 0; ; {
		result, err := once(opts, exact > 0)
		switch {
		case opts.Target == nil && errors.Is(err, errFlagsChanged) && exact < exactTries:
			exact++
		case opts.Target == nil && errors.Is(err, image.ErrLost) && opts.Parent != "":
			lost, opts.Parent = err, ""
		default:
			if err == nil && lost != nil {
				result.Notes = append(result.Notes, fmt.Sprintf("this checkpoint has no parent, since that is damaged: %v", lost))
			}
			return result, err
		}
	}
}

// dumpOnce makes a dump; an exact one trusts nothing that was read before the
// freeze.
func dumpOnce(ctx context.Context, opts DumpOptions, exact bool) (_ *DumpResult, err error) {
	d := &dump{opts: opts, begun: time.Now(), exact: exact}
	d.dumpSpans(ctx)
	defer func() { d.endSpans(err) }()
	defer d.cleanUp()
	if err := d.do(StepPrepare, func() error { return d.prepare(ctx) }); err != nil {
		return nil, err
	}
	if err := d.dumpState(ctx); err != nil {
		return nil, err
	}
	if d.opts.After == AfterRun {
		d.notePause()
		d.endPause()
		if err := d.keep(); err != nil {
			return nil, err
		}
	}
	d.autoDedup(ctx)
	d.keepTrackers()
	return d.result(), nil
}

func (d *dump) result() *DumpResult {
	return &DumpResult{Dir: d.opts.Dir, After: d.opts.After, Manifest: d.manifest, Notes: d.notes, Freed: d.freed, GivenUp: d.givenUp}
}

// dumpState lets CRIU freeze and dump the tree. Stasis does its part at CRIU's
// notifications:
//
//	still running   arm the trackers, copy memory until little is left
//	frozen          hide the memory from CRIU, copy the last pages meanwhile
//	state written   wait for the last pages; if the tree is not to run on,
//	                finish the checkpoint and end the tree while it is frozen
//
// CRIU is always told to leave the tree running: if Stasis dies, at whatever
// moment, CRIU lets the tree go on. A tree that has to end is ended here, by
// signals that it gets before CRIU can let it go.
func (d *dump) dumpState(ctx context.Context) error {
	session, err := d.startCRIU()
	if err != nil {
		return d.fail(StepPrepare, nil, err)
	}
	if err := d.guardNetwork(session); err != nil {
		session.Abandon()
		return d.fail(StepPrepare, nil, errors.Join(err, session.Close()))
	}
	err = session.Dump(ctx, func(ctx context.Context, at criu.Notification, _ int) error {
		switch at {
		case criu.PreDump:
			return d.whileRunning(ctx)
		case criu.Frozen:
			return d.whileFrozen(ctx)
		case criu.PostDump:
			return d.whenStateIsWritten(ctx, session)
		}
		return nil
	})
	d.thawed = time.Now()
	closed := session.Close()
	if err != nil && criu.WasKilled(closed) {
		err = errors.Join(err, d.rescue())
	}
	err = d.explained(errors.Join(err, howCRIUEnded(err, closed, filepath.Join(d.work.Path(), dumpLog))))
	if d.manifest != nil && errors.Is(err, criu.ErrAbandoned) {
		return nil // published, and ended on purpose
	}
	if errors.Is(err, criu.ErrRequest) {
		return d.fail(StepState, ErrInput, err)
	}
	return d.fail(StepState, ErrProcess, err)
}

func (d *dump) whileRunning(ctx context.Context) error {
	if err := d.do(StepArm, func() error { return d.arm() }); err != nil {
		return err
	}
	err := d.do(StepCopy, func() error { return d.copyRounds(ctx) })
	d.prepareBuffer()
	d.frozen = time.Now() // as good as: CRIU freezes the tree next
	d.spans.begin("dump.pause")
	return err
}

func (d *dump) whileFrozen(ctx context.Context) error {
	err := d.do(StepFreeze, func() error {
		if err := d.hideMemory(); err != nil {
			return err
		}
		return d.copyLast(ctx)
	})
	d.spans.begin("dump.criu")
	return err
}

func (d *dump) whenStateIsWritten(ctx context.Context, session *criu.Session) error {
	d.spans.end(nil) // of CRIU's part
	if err := d.do(StepState, func() error { return d.finishLast(ctx) }); err != nil {
		return err
	}
	if d.opts.After == AfterRun {
		return nil
	}
	d.thawed = time.Now()
	d.endPause()
	if err := d.do(StepWrite, d.writeKept); err != nil {
		return err
	}
	if err := d.do(StepPublish, func() error { return d.publishFrozen(session) }); err != nil {
		return err
	}
	return d.do(StepEnd, func() error { return d.endTree(session) })
}

// keep writes what was held back during the freeze and lets the checkpoint
// exist.
func (d *dump) keep() error {
	if err := d.do(StepWrite, d.writeKept); err != nil {
		return err
	}
	return d.do(StepPublish, d.publish)
}

// do runs a step; its error says which step it was.
func (d *dump) do(step Step, work func() error) (err error) {
	d.spans.begin("dump." + string(step))
	defer func() { d.spans.end(err) }()
	d.report(Progress{Step: step})
	if d.opts.AtStep != nil {
		if err := d.opts.AtStep(step); err != nil {
			return d.fail(step, nil, err)
		}
	}
	return d.fail(step, nil, work())
}

func (d *dump) fail(step Step, kind, err error) error {
	if err == nil {
		return nil
	}
	if inner := (*stepError)(nil); errors.As(err, &inner) {
		return err // it happened in a step that CRIU waited for
	}
	if kind == nil && d.opts.Parent != "" && isDamage(err) {
		kind, err = ErrDamaged, fmt.Errorf("the parent or one that it builds on: %w; or dump without a parent", err)
	}
	return &stepError{step: step, kind: kind, err: fmt.Errorf("dump of process %d: %w", d.opts.PID, err)}
}

// report tells of progress, from whichever goroutine, one call at a time.
func (d *dump) report(p Progress) {
	if d.opts.Progress != nil {
		d.reporting.Lock()
		defer d.reporting.Unlock()
		d.opts.Progress(p)
	}
}
