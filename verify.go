package stasis

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"stasis/internal/chain"
	"stasis/internal/image"
)

// VerifyOptions says what to verify. Dir is needed.
type VerifyOptions struct {
	Dir  string   // folder of the checkpoint
	Near []string // as for a restore

	Progress func(Progress) // as for a dump; Done and Total are bytes that are read
}

// VerifyResult tells what was read. All of it is whole: damage is an error.
type VerifyResult struct {
	Manifest *Manifest     `json:"manifest"`
	Blocks   int           `json:"blocks"`  // of memory
	Bytes    int64         `json:"bytes"`   // that were read, in the checkpoint and in its ancestors
	Took     time.Duration `json:"took_ns"` // nanoseconds in JSON
}

// Verify reads every block that a checkpoint needs, those of its ancestors among
// them, and compares it with its checksum. It needs no privilege but to read
// the files, and nothing of the checkpoint can be given up meanwhile.
//
// The error wraps ErrDamaged where anything is wrong or missing, and its text
// lists up to 20 places; ErrInput where there is no checkpoint.
func Verify(ctx context.Context, opts VerifyOptions) (*VerifyResult, error) {
	begun := time.Now()
	lock, err := chain.LockShared(ctx, opts.Dir, opts.Near...)
	if err != nil {
		return nil, ofKind(kindOfFinding(err), err)
	}
	defer lock.Unlock() //nolint:errcheck // closing a folder loses nothing
	checkpoint, err := lock.Open()
	if err != nil {
		return nil, ofKind(kindOfFinding(err), onlyMissing(err))
	}
	defer checkpoint.Close()
	meter := meter{step: StepVerify, tell: opts.Progress}
	if err := checkpoint.Verify(ctx, runtime.NumCPU(), meter.show); err != nil {
		return nil, ofKind(kindOfReading(err), onlyMissing(err))
	}
	return &VerifyResult{
		Manifest: checkpoint.Manifest(), Blocks: checkpoint.Blocks(), Bytes: meter.total, Took: time.Since(begun),
	}, nil
}

// meter tells of progress, one call at a time and never backwards.
type meter struct {
	step Step
	tell func(Progress) // may be nil

	mu    sync.Mutex
	done  int64 // guarded by mu
	total int64 // guarded by mu
}

func (m *meter) show(done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done, m.total = max(m.done, done), total
	if m.tell != nil {
		m.tell(Progress{Step: m.step, Done: m.done, Total: m.total})
	}
}

// onlyMissing is the missing ancestor that an error is about, which says all that is in the text around it.
func onlyMissing(err error) error {
	if missing := (*chain.MissingError)(nil); errors.As(err, &missing) {
		return missing
	}
	return err
}

// kindOfFinding is the kind of an error of opening a checkpoint.
func kindOfFinding(err error) error {
	if kind := kindOfReading(err); kind != nil {
		return kind
	}
	return kindOfOpening(err)
}

// kindOfReading is the kind of an error of a checkpoint that was open. One that
// lacks memory of an ancestor is incomplete.
func kindOfReading(err error) error {
	damage, deduplicated, missing := (*image.DamageError)(nil), (*chain.DedupedError)(nil), (*chain.MissingError)(nil)
	if errors.As(err, &damage) || errors.As(err, &deduplicated) || errors.As(err, &missing) {
		return ErrDamaged
	}
	return nil
}

// ofKind gives an error its kind, and leaves its text as it is.
func ofKind(kind, err error) error {
	if kind == nil {
		return err
	}
	return &stepError{kind: kind, err: err}
}
