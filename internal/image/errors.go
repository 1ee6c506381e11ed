package image

import (
	"errors"
	"fmt"
)

// DamageError says that a checkpoint can't be used as it is. Every kind of damage ends in one.
type DamageError struct {
	Checkpoint string // its path or address
	Shard      string // the file that is damaged
	Offset     int64  // where, in bytes
	Why        string
	Err        error // what led to it, may be nil
}

// NewDamage makes a DamageError; err, which may be nil, becomes part of the reason.
func NewDamage(checkpoint, shard string, offset int64, why string, err error) *DamageError {
	if err != nil {
		why += ": " + err.Error()
	}
	return &DamageError{checkpoint, shard, offset, why, err}
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("checkpoint %s is damaged: %s at offset %d: %s: use a good copy of that file or another checkpoint (verify lists all damage)",
		e.Checkpoint, e.Shard, e.Offset, e.Why)
}

func (e *DamageError) Unwrap() error { return e.Err }

// VersionError says that a checkpoint is of a format that this Stasis can't read.
type VersionError struct {
	Checkpoint string
	Format     int    // the checkpoint's
	Stasis     string // the version that wrote it, may be empty
}

func (e *VersionError) Error() string {
	by := "a newer Stasis"
	if e.Stasis != "" {
		by = "Stasis " + e.Stasis
	}
	return fmt.Sprintf("checkpoint %s was written by %s in format %d, and this Stasis reads formats up to %d: use %s or a newer one",
		e.Checkpoint, by, e.Format, FormatVersion, by)
}

// MissingError says that pages that are to be in a checkpoint were never captured.
type MissingError struct {
	PID   int
	First Range  // the first gap
	Pages uint64 // in all gaps of this process
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%d pages of process %d were not captured, the first at %#x-%#x: dump again, and report this as a fault of Stasis",
		e.Pages, e.PID, e.First.Start, e.First.End)
}

// ErrLost says that the checkpoint would need a part of its parent that can't be read.
var ErrLost = errors.New("the parent is damaged")
