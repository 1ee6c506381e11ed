package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"stasis"
	"stasis/internal/image"
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
		return a.damageFound(dir, err)
	}
	m := result.Manifest
	report := verifyReport{ID: m.ID, Name: m.Name, OK: true, Blocks: result.Blocks, TookUS: result.Took.Microseconds(), Bytes: result.Bytes}
	report.BytesPerSecond = perSecond(report.Bytes, result.Took)
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	if !a.quiet {
		what := "checkpoint"
		if m.Kind == image.KindPreDump {
			what = "pre-dump"
		}
		fmt.Fprintf(a.out, "%s %s is whole: %s, %s in %s, read in %s (%s)\n", what, printable(arg),
			plural(report.Blocks, "block"), inBytes(report.Bytes), plural(len(m.Shards), "stream"), span(result.Took), rate(report.Bytes, result.Took))
	}
	return nil
}

// damageFound lists damage by the checkpoint that it is in, with what to do once. Programs get the error as it is.
func (a *app) damageFound(dir string, err error) error {
	list := damages(err)
	if len(list) < 2 || a.output == outputJSON {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s is damaged in %d places", dir, len(list))
	if len(list) == listedDamage {
		b.WriteString(" or more")
	}
	b.WriteString(": put good copies of these files there, or use another checkpoint")
	slices.SortStableFunc(list, func(x, y damage) int { // blocks are read by many at once
		return cmp.Or(strings.Compare(x.Checkpoint, y.Checkpoint), strings.Compare(x.File, y.File), cmp.Compare(x.Offset, y.Offset))
	})
	for i, d := range list {
		if i == 0 || list[i-1].Checkpoint != d.Checkpoint {
			fmt.Fprintf(&b, "\ncheckpoint %s:", d.Checkpoint)
		}
		fmt.Fprintf(&b, "\n  %s at offset %d: %s", d.File, d.Offset, d.Why)
	}
	return &listedError{text: b.String(), err: err}
}

// listedDamage is how many places the library lists at most.
const listedDamage = 20

// listedError is an error in other words.
type listedError struct {
	text string
	err  error
}

func (e *listedError) Error() string { return e.text }
func (e *listedError) Unwrap() error { return e.err }
