// Package stasis checkpoints and restores running Linux processes.
//
// [Dump] saves a process tree while it works; it stands still for some
// milliseconds, whatever its size. [Restore] brings it back. CRIU keeps the
// kernel state (sockets, terminals, timers, namespaces), Stasis keeps the
// memory: it is copied while the process runs, what is written meanwhile is
// tracked by the kernel, and only the last changes are copied while the tree is
// frozen.
//
// Both functions read from top to bottom as named steps. They need root, Linux
// 6.7 or newer for the short pause, and CRIU 4.2 or newer.
//
// A checkpoint is a folder with a manifest and shards; internal/image has its
// format. No checkpoint exists before it is whole and durable, and no process
// is ended before its checkpoint exists.
package stasis

import (
	"errors"

	"stasis/internal/criu"
	"stasis/internal/image"
)

// Version is the version of Stasis; the build sets it.
var Version = "devel"

// The kinds of errors that callers can act on. Each error of this package that
// is of a kind wraps one of them; its text says what happened and what to do.
var (
	// ErrInput: what was asked for makes no sense or is not there. Nothing was done.
	ErrInput = errors.New("invalid request")
	// ErrProcess: the process is gone, or cannot be dumped as it is.
	ErrProcess = errors.New("the process cannot be dumped")
	// ErrBusy: another dump of the same process is under way.
	ErrBusy = errors.New("busy")
	// ErrDamaged: the checkpoint is damaged or incomplete.
	ErrDamaged = errors.New("the checkpoint is damaged")
	// ErrConflict: the restore would collide with what runs here.
	ErrConflict = errors.New("the restore conflicts with this machine")
)

// CRIUOptions are the options that are handed to CRIU.
type CRIUOptions = criu.Options

// Manifest describes a checkpoint.
type Manifest = image.Manifest

// Engine is the way in which memory is kept from CRIU.
type Engine string

// The engines. All of them give the same checkpoint; they differ in how long
// the process stands still.
const (
	// EngineAuto takes the best that works here.
	EngineAuto Engine = "auto"
	// EngineBlind preloads a library into CRIU that hides the memory from it.
	EngineBlind Engine = "blind"
	// EngineLazyPages lets CRIU collect the memory, but not write it: some
	// 30 ms a GiB, where no library can be preloaded.
	EngineLazyPages Engine = "lazy-pages"
	// EngineCRIU lets CRIU dump all memory during the freeze.
	EngineCRIU Engine = "criu"
)

// Step names a part of a dump or a restore, for progress and for tests that
// break things at every one of them.
type Step string

// The steps of a dump, in their order.
const (
	StepPrepare Step = "prepare" // look at the tree, open the checkpoint
	StepArm     Step = "arm"     // begin to track writes
	StepCopy    Step = "copy"    // copy memory while the tree runs
	StepFreeze  Step = "freeze"  // the tree has just been frozen
	StepState   Step = "state"   // CRIU has dumped the state, the last pages are in RAM
	StepWrite   Step = "write"   // write what was kept during the freeze
	StepPublish Step = "publish" // make it durable and let it exist
	StepEnd     Step = "end"     // kill, stop or leave the tree
)

// The steps of a restore, in their order.
const (
	StepOpen    Step = "open"    // read manifest and index
	StepCheck   Step = "check"   // look for conflicts with this machine
	StepUnpack  Step = "unpack"  // lay out CRIU's images
	StepRestore Step = "restore" // CRIU restores the state
	StepFill    Step = "fill"    // memory is put in place
	StepResume  Step = "resume"  // the tree is let go for good; named by errors only
)

// Progress tells how far a dump or restore is.
type Progress struct {
	Step  Step
	Round int   // number of the copy round, from 0
	Done  int64 // bytes of memory done in this step
	Total int64 // bytes of memory that this step has to do; 0 where unknown
}

// stepError is a failure with the step in which it happened and, where callers
// can act on it, its kind.
type stepError struct {
	step Step
	kind error
	err  error
}

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// FailedStep says in which step an error of Dump or Restore happened, or "".
func FailedStep(err error) Step {
	var s *stepError
	if errors.As(err, &s) {
		return s.step
	}
	return ""
}
