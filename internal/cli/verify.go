package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"stasis"
)

func (a *app) verifyCommand() *cobra.Command {
	var ancestors []string
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Read a whole checkpoint and check all of it",
		Long: `Reads every block of a checkpoint and compares it with its checksum. DIR is a folder or the name of a checkpoint in the default
folder. All damage that is found is listed, up to 20 places. Of the checkpoints that it builds on, what it needs is read.

A restore checks what it reads as well: it never needs this, but this finds damage while there still is another copy.`,
		Example:           "  stasis verify before-update",
		Args:              oneArg("the checkpoint"),
		ValidArgsFunction: a.completeCheckpoint,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runVerify(cmd.Context(), args[0], ancestors)
		},
	}
	cmd.Flags().StringArrayVar(&ancestors, "also", nil, "also look in `DIR` for the checkpoints that this one builds on; may be repeated")
	must(cmd.MarkFlagDirname("also"))
	return cmd
}

// verifyReport is the result for programs; damage is an error instead.
type verifyReport struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	OK             bool   `json:"ok"`
	Blocks         int    `json:"blocks"` // of memory
	Bytes          int64  `json:"bytes"`  // that were read
	TookUS         int64  `json:"took_us"`
	BytesPerSecond int64  `json:"bytes_per_second"`
}

func (a *app) runVerify(ctx context.Context, arg string, ancestors []string) error {
	dir, err := a.locate(arg)
	if err != nil {
		return err
	}
	view := a.progress()
	defer view.Close()
	result, err := stasis.Verify(ctx, stasis.VerifyOptions{
		Dir: dir, Near: ancestors, Progress: func(p stasis.Progress) { view.show("reading", p.Done, p.Total) },
	})
	view.Close()
	if err != nil {
		return err //nolint:wrapcheck // it says all there is to say
	}
	m := result.Manifest
	report := verifyReport{ID: m.ID, Name: m.Name, OK: true, Blocks: result.Blocks, TookUS: result.Took.Microseconds(), Bytes: result.Bytes}
	report.BytesPerSecond = perSecond(report.Bytes, result.Took)
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	if !a.quiet {
		fmt.Fprintf(a.out, "checkpoint %s is whole: %s, %s in %s, read in %s (%s)\n", printable(m.Name),
			plural(report.Blocks, "block"), inBytes(report.Bytes), plural(len(m.Shards), "stream"), span(result.Took), rate(report.Bytes, result.Took))
	}
	return nil
}
