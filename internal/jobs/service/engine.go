package service

import (
	"context"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/engine"
	"stasis/internal/jobs"
	"stasis/internal/peer"
)

// through lets the manager work with the daemon's engine.
type through struct {
	jobs.Library

	engine *engine.Engine
}

var _ jobs.Engine = (*through)(nil)

// Dump implements jobs.Engine.
func (t *through) Dump(ctx context.Context, by jobs.User, o stasis.DumpOptions, consoles []string) (*stasis.DumpResult, error) {
	return t.engine.DumpJobFor(ctx, peer.Peer{UID: by.UID, GID: by.GID}, o, consoles)
}

// MayRestore implements jobs.Engine.
func (t *through) MayRestore(dir string) error {
	_, err := engine.Trusted(dir)
	return err
}

// Remove implements jobs.Engine.
func (t *through) Remove(_ context.Context, dirs []string) error {
	_, err := chain.Remove(dirs, chain.Options{})
	return err
}
