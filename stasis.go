// Package stasis checkpoints and restores running Linux processes.
//
// [Dump] saves a process tree while it works; it stands still for some
// milliseconds, whatever its size. [Restore] brings it back. CRIU keeps the
// kernel state (sockets, terminals, timers, namespaces), Stasis keeps the
// memory: it is copied while the process runs, what is written meanwhile is
// tracked by the kernel, and only the last changes are copied while the tree is
// frozen.
//
// Both need root, Linux 6.7 or newer for the short pause, and CRIU 4.2 or newer.
// What works on checkpoints alone needs the right to read and write their files:
// [Checkpoints] lists them, [Inspect] and [Verify] look into one, [Export] and
// [Import] turn them into CRIU's own images and back.
//
// A checkpoint is a folder with a manifest and shards; docs/manifest.schema.json
// describes the manifest. No checkpoint exists before it is whole and durable,
// and no process is ended before its checkpoint exists. A dump with a parent
// holds what differs from it, and needs it: together they are a chain.
//
// Each function may be called from any number of goroutines. What takes long
// takes a context, and when that is cancelled undoes what it began. Errors say
// what happened and what to do; those that a program can act on wrap one of the
// Err values.
package stasis

import (
	"errors"

	"stasis/internal/criu"
	"stasis/internal/image"
)

// What CRIU's logs are called in its work folder.
const (
	dumpLog    = "dump.log"
	restoreLog = "restore.log"
)

// Version is the version of Stasis; the build sets it.
var Version = "devel"

// The kinds of errors that callers can act on. Each error of this package that
// is of a kind wraps one of them; its text says what happened and what to do.
var (
	// ErrInput: what was asked for makes no sense, is not there, or is in use.
	// Nothing was done.
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

// CRIUOptions are the options that are handed to CRIU, named as criu(8) names
// them: ShellJob, TCPEstablished, TCPClose, ExtUnixSk, FileLocks, LinkRemap,
// GhostLimit (bytes), External, Root, JoinNS, ManageCgroups, Timeout (seconds)
// and others. The zero value is CRIU's default for each.
type CRIUOptions = criu.Options

// Manifest describes a checkpoint: its ID and Name, its Parent, when it was
// Created, the Host and the Processes, and Figures of how the dump went
// (microseconds where a name ends in US, bytes where it begins with Bytes).
// docs/manifest.schema.json describes every member.
type Manifest = image.Manifest

// The kinds of checkpoint, as Manifest.Kind has them.
const (
	KindFull    = image.KindFull    // "full": can be restored
	KindPreDump = image.KindPreDump // "pre-dump": memory only, the parent of a later one
)

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

// Step names a part of what is being done, for progress and, in dumps and
// restores, for tests that break things at every one of them.
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

// The steps of a restore, in their order. Where a number of the tree was taken
// after the check, check and unpack come once more, within restore.
const (
	StepOpen    Step = "open"    // read manifest and index
	StepCheck   Step = "check"   // look for conflicts with this machine
	StepUnpack  Step = "unpack"  // lay out CRIU's images
	StepRestore Step = "restore" // CRIU restores the state
	StepFill    Step = "fill"    // memory is put in place
	StepResume  Step = "resume"  // the tree is let go for good; named by errors only
)

// The only step of what works on checkpoints alone.
const (
	StepVerify Step = "verify"
	StepExport Step = "export"
	StepImport Step = "import"
)

// Progress tells how far something is. It is called from one goroutine at a
// time, which waits for it: it should return soon.
type Progress struct {
	Step  Step
	Round int   // number of the copy round, from 0
	Done  int64 // bytes done in this step; of memory, unless it is said otherwise
	Total int64 // bytes that this step has to do; 0 where unknown
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
