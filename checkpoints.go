package stasis

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"stasis/internal/chain"
)

// CheckpointState says what a folder of a checkpoint is good for.
type CheckpointState string

// The states of a checkpoint.
const (
	// StateWhole: it has all its memory, and restores.
	StateWhole CheckpointState = "whole"
	// StateDeduplicated: it gave up memory for one that builds on it.
	StateDeduplicated CheckpointState = "deduplicated"
	// StateRemoved: it is no checkpoint any more, but others need memory of it.
	StateRemoved CheckpointState = "removed"
	// StateUnreadable: its manifest cannot be read, or an ancestor or a shard is missing;
	// CheckpointInfo.Error says why.
	StateUnreadable CheckpointState = "unreadable"
)

// CheckpointInfo describes a checkpoint in a list. Sizes are in bytes.
type CheckpointInfo struct {
	ID    string // 32 hex digits
	Name  string // what it was called; its folder may have another name
	Dir   string // its folder, absolute
	Kind  string // KindFull, or KindPreDump, which cannot be restored; "" where it is not known
	State CheckpointState
	Error string // why it is unreadable

	Created time.Time // when its processes were frozen
	PID     int       // of the root
	Command string    // of the root

	Parent     string   // id of the one that it was made on top of; "": none
	Depth      int      // how many it was made on top of, as far as they are there
	Ancestors  []string // ids of those that hold memory of it
	Dependents []string // folders of those that need memory of it

	BytesMemory     int64 // that a restore brings back
	BytesReferenced int64 // of these, that lie in ancestors
	BytesDisk       int64 // that its folder takes on the disk
}

// Checkpoints lists the checkpoints and pre-dumps in the folders of dir, the
// oldest first, with those of which only a rest is left. It reads their
// manifests alone. near are further folders in which checkpoints that they
// build on, or that build on them, are looked for.
//
// The error wraps ErrInput where dir is not there. A checkpoint that cannot be
// read is listed as such.
func Checkpoints(ctx context.Context, dir string, near ...string) ([]CheckpointInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found, err := chain.List(dir, near...)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ofKind(ErrInput, err)
	} else if err != nil {
		return nil, err
	}
	list := make([]CheckpointInfo, len(found))
	for i, f := range found {
		list[i] = CheckpointInfo{
			ID: f.ID, Name: f.Name, Dir: f.Dir, Kind: f.Kind, State: CheckpointState(f.State), Error: f.Error,
			Created: f.Created, PID: f.PID, Command: f.Command, Parent: f.Parent, Depth: f.Depth, Ancestors: f.Ancestors,
			BytesMemory: f.BytesMemory, BytesReferenced: f.BytesReferenced, BytesDisk: f.BytesDisk,
		}
		for _, d := range f.Dependents {
			list[i].Dependents = append(list[i].Dependents, d.Dir)
		}
	}
	return list, nil
}
