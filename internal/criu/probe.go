package criu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"

	"stasis/internal/proc"
)

// probeLimit bounds how long CRIU may take to answer a question.
const probeLimit = 10 * time.Second

// TryPreload finds out whether the library gets into CRIU: it starts CRIU with
// it, waits for an answer, and looks at what CRIU has mapped. nil if it does.
func (b *Binary) TryPreload(ctx context.Context) error {
	blind, err := NewBlind()
	if err != nil {
		return err
	}
	defer blind.Close()
	session, err := b.Start(Request{Opts: &rpc.CriuOpts{}, Blind: blind})
	if err != nil {
		return err
	}
	defer session.Close()
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	defer context.AfterFunc(ctx, session.Abandon)()

	version, stay := rpc.CriuReqType_VERSION, true
	if err := session.send(&rpc.CriuReq{Type: &version, KeepOpen: &stay}); err != nil {
		return err
	}
	if _, err := session.receive(); err != nil {
		return errors.Join(err, ctx.Err())
	}
	maps, err := proc.Maps(session.PID())
	if err != nil {
		return err
	}
	for _, name := range []string{"stasis-preload.so", "stasis-blind-"} {
		if !mapped(maps, name) {
			return fmt.Errorf("%s runs without %s: its loader does not heed LD_PRELOAD, or may not run code from memory", b.Path, name)
		}
	}
	return nil
}

func mapped(maps []proc.Mapping, name string) bool {
	for i := range maps {
		if strings.HasPrefix(maps[i].Path, "/memfd:"+name) {
			return true
		}
	}
	return false
}
