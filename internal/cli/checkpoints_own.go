package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
	"stasis/internal/chain"
	"stasis/internal/image"
)

// mayRead says whether this user may list a folder. One that is not there has nothing to hide.
func mayRead(dir string) bool {
	folder, err := os.Open(dir)
	if err == nil {
		folder.Close()
	}
	return !os.IsPermission(err)
}

// ownCheckpoints lists what the daemon shows to a user: his own, or those of one of his jobs.
func (a *app) ownCheckpoints(ctx context.Context, job string, all bool) error {
	var list []chain.Info
	err := a.withDaemon(ctx, func(c *client.Client) error {
		if job != "" {
			if _, err := c.Jobs.Get(ctx, connect.NewRequest(&v1.GetJobRequest{Job: job})); err != nil {
				return err
			}
		}
		for token := ""; ; {
			page, err := c.Checkpoints.List(ctx, connect.NewRequest(&v1.ListCheckpointsRequest{Job: job, PageSize: 1000, PageToken: token}))
			if err != nil {
				return err
			}
			for _, m := range page.Msg.GetCheckpoints() {
				list = append(list, infoOf(m))
			}
			if token = page.Msg.GetNextPageToken(); token == "" {
				return nil
			}
		}
	})
	if err != nil {
		return err
	}
	slices.Reverse(list) // the oldest first
	shown := []chain.Info{}
	for _, i := range list {
		if all || i.Kind != image.KindPreDump {
			shown = append(shown, i)
		}
	}
	if a.output == outputJSON {
		return a.writeJSON(shown)
	}
	if len(list) == 0 {
		if !a.quiet {
			fmt.Fprintln(a.out, "the daemon knows no checkpoints of yours")
		}
		return nil
	}
	rows := checkpointRows(shown, list)
	for k, i := range shown {
		if home := filepath.Dir(i.Dir); filepath.Base(filepath.Dir(home)) == "jobs" {
			rows[k][0] = filepath.Base(home) + "/" + rows[k][0] // several jobs have a 000001
		}
	}
	if err := table(a.out, checkpointColumns, rows); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// infoOf is a checkpoint as the daemon describes it. Which others need it, it does not say.
func infoOf(m *v1.Checkpoint) chain.Info {
	kind := image.KindFull
	if m.GetKind() == v1.CheckpointKind_CHECKPOINT_KIND_PRE_DUMP {
		kind = image.KindPreDump
	}
	return chain.Info{
		Item:  chain.Item{ID: m.GetId(), Name: m.GetName(), Dir: m.GetDir(), Kind: kind},
		State: chain.StateWhole, Parent: m.GetParent(), Created: m.GetCreated().AsTime(), PID: int(m.GetRootPid()), Command: m.GetCommand(),
		Depth: int(max(m.GetChainLength(), 1)) - 1, BytesMemory: m.GetFigures().GetBytesMemory(), BytesReferenced: m.GetFigures().GetBytesReferenced(),
		BytesDisk: m.GetBytes(), Ancestors: []string{}, Dependents: []chain.Item{},
	}
}
