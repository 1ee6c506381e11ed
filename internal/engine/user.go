package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/image"
	"stasis/internal/peer"
	"stasis/internal/store"
	"stasis/internal/trust"
	"stasis/internal/wire"
)

// DumpFor is Dump on behalf of somebody. For everybody but root it makes sure, once more while the tree is frozen, that all of the tree is
// theirs, and refuses options that reach beyond it. Where the checkpoint goes and what it builds on is the caller's matter.
func (e *Engine) DumpFor(ctx context.Context, p peer.Peer, o stasis.DumpOptions) (*stasis.DumpResult, error) {
	if p.Root() {
		return e.Dump(ctx, o)
	}
	if err := harmless(&o.CRIU); err != nil {
		return nil, err
	}
	if o.Engine == stasis.EngineCRIU || o.AutoDedup {
		return nil, fmt.Errorf("%w: the engine criu and auto_dedup are root's", wire.ErrDenied)
	}
	return e.dumpTheirs(ctx, p, o)
}

// dumpTheirs dumps a tree if it is all of a user's, also while it is frozen.
func (e *Engine) dumpTheirs(ctx context.Context, p peer.Peer, o stasis.DumpOptions) (*stasis.DumpResult, error) {
	if err := theirs(o.PID, p); err != nil {
		return nil, err
	}
	before := o.AtStep
	o.AtStep = func(s stasis.Step) error {
		if s == stasis.StepFreeze {
			if err := theirs(o.PID, p); err != nil {
				return err
			}
		}
		if before != nil {
			return before(s)
		}
		return nil
	}
	return e.Dump(ctx, o)
}

// DumpJobFor is DumpFor for a job, whose terminal or pipe, named as CRIU does, is held by a shim outside of its tree.
func (e *Engine) DumpJobFor(ctx context.Context, p peer.Peer, o stasis.DumpOptions, consoles []string) (*stasis.DumpResult, error) {
	if err := Harmless(p, &o.CRIU); err != nil {
		return nil, err
	}
	o.CRIU.External = append(append([]string(nil), o.CRIU.External...), consoles...)
	if p.Root() {
		return e.Dump(ctx, o)
	}
	return e.dumpTheirs(ctx, p, o)
}

// PreDumpFor is PreDump on behalf of somebody, as DumpFor. The tree is never frozen, so it is looked at before anything is read and
// again before the result is published.
func (e *Engine) PreDumpFor(ctx context.Context, p peer.Peer, o stasis.PreDumpOptions) (*stasis.DumpResult, error) {
	if p.Root() {
		return e.PreDump(ctx, o)
	}
	if err := theirs(o.PID, p); err != nil {
		return nil, err
	}
	before := o.AtStep
	o.AtStep = func(s stasis.Step) error {
		if s == stasis.StepArm || s == stasis.StepCopy || s == stasis.StepPublish {
			if err := theirs(o.PID, p); err != nil {
				return err
			}
		}
		if before != nil {
			return before(s)
		}
		return nil
	}
	return e.PreDump(ctx, o)
}

// RestoreFor is Restore of a folder on behalf of somebody. For nobody a checkpoint is restored that another than root could have written.
// For everybody but root the restored tree is looked at before it runs: it must have no more rights than they have.
func (e *Engine) RestoreFor(ctx context.Context, p peer.Peer, o stasis.RestoreOptions) (*stasis.RestoreResult, error) {
	m, err := Trusted(o.Dir)
	if err != nil {
		return nil, err
	}
	if p.Root() {
		return e.Restore(ctx, o)
	}
	switch {
	case o.Lazy, o.Force:
		return nil, fmt.Errorf("%w: lazy and force are root's: what a restored process has open can only be checked before it runs", wire.ErrDenied)
	case o.AdjustCRIU != nil:
		return nil, fmt.Errorf("%w: other options than those of the dump are root's", wire.ErrDenied)
	}
	pids := make([]int, 0, len(m.Processes))
	for _, process := range m.Processes {
		if process.State != "Z" {
			pids = append(pids, process.PID)
		}
	}
	before := o.AtStep
	checked := false
	o.AtStep = func(s stasis.Step) error {
		if s == stasis.StepFill {
			checked = true
			if err := trust.Restored(pids, trust.User{UID: p.UID, GID: p.GID}); err != nil {
				return fmt.Errorf("%w: %w", wire.ErrDenied, err)
			}
		}
		if before != nil {
			return before(s)
		}
		return nil
	}
	result, err := e.Restore(ctx, o)
	if err == nil && !checked {
		return nil, errors.New("the restored tree was not checked before it ran") // the library has changed its steps
	}
	return result, err
}

func theirs(pid int, p peer.Peer) error {
	err := trust.Tree(pid, trust.User{UID: p.UID, GID: p.GID})
	if not := (*trust.ProcessError)(nil); errors.As(err, &not) {
		return fmt.Errorf("%w: %w", wire.ErrDenied, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", stasis.ErrInput, err)
	}
	return nil
}

// Theirs makes sure that all of a process tree is a user's.
func Theirs(pid int, p peer.Peer) error {
	if p.Root() {
		return nil
	}
	return theirs(pid, p)
}

// Harmless refuses options of CRIU that are root's, to everybody but root.
func Harmless(p peer.Peer, o *stasis.CRIUOptions) error {
	if p.Root() {
		return nil
	}
	return harmless(o)
}

// harmless refuses options of CRIU that reach beyond the tree.
func harmless(o *stasis.CRIUOptions) error {
	switch {
	case o.Root != "", len(o.JoinNS) > 0, len(o.Raw) > 0, len(o.External) > 0, o.ActionScript != "", len(o.InheritFDs) > 0:
		return fmt.Errorf("%w: the options root, join_ns, external and raw of CRIU are root's", wire.ErrDenied)
	case o.ManageCgroups != "" && o.ManageCgroups != "ignore":
		return fmt.Errorf("%w: cgroups are root's: leave manage_cgroups out", wire.ErrDenied)
	case o.LinkRemap:
		return fmt.Errorf("%w: link_remap is root's: it makes files at paths that others may redirect", wire.ErrDenied)
	}
	return nil
}

// Trusted reads the manifest of a checkpoint that nobody but root could have written, ancestors included.
func Trusted(dir string) (*image.Manifest, error) {
	return TrustedWith(Trust{}, dir)
}

// Trust says what is to be looked at, and whom to trust.
type Trust struct {
	Users []uint32 // who may write checkpoints besides root
	Near  []string // where else ancestors are looked for: as stasis.RestoreOptions has it
	// Received: the checkpoint itself was handed over, and only its ancestors are looked at.
	Received bool
}

// TrustedWith is Trusted for somebody who trusts others as well. Where somebody else could have written something, the error wraps a
// *trust.Error.
func TrustedWith(t Trust, dir string) (*image.Manifest, error) {
	if !t.Received {
		if err := trusted(dir, t.Users); err != nil {
			return nil, err
		}
	}
	src, err := store.OpenFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", stasis.ErrInput, err)
	}
	m, err := image.ReadManifest(src)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", stasis.ErrDamaged, err)
	}
	find := chain.Resolver(m, dir, t.Near...)
	for _, missing := range chain.Missing(m, dir, t.Near...) {
		return nil, fmt.Errorf("%w: %w", stasis.ErrInput, missing)
	}
	for _, origin := range m.Origins {
		id, err := image.ParseID(origin.ID)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", stasis.ErrDamaged, err)
		}
		ancestor, err := find(id)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", stasis.ErrDamaged, err)
		}
		if err := trusted(ancestor.Name(), t.Users); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// trusted looks at one folder.
func trusted(dir string, users []uint32) error {
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", stasis.ErrInput, err)
	}
	err = trust.Folder(absolute, users...)
	if not := (*trust.Error)(nil); errors.As(err, &not) {
		return fmt.Errorf("%w: %w", wire.ErrDenied, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", stasis.ErrInput, err)
	}
	return nil
}
