package cli

import (
	"bufio"
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"stasis/internal/chain"
	"stasis/internal/image"
)

func (a *app) dedupCommand() *cobra.Command {
	var o chain.Options
	var yes bool
	cmd := &cobra.Command{
		Use:   "dedup DIR",
		Short: "Give back memory in ancestors that a checkpoint does not need",
		Long: `Gives back the space of memory that the ancestors of a checkpoint hold and that it does not need, as CRIU's command does: files keep
their sizes and get holes. DIR is a folder or the name of a checkpoint in the default folder.

Ancestors that lose memory can't be restored any more, nor dumped on. They are named, and you are asked before anything is done;
without a terminal, --yes is needed. Whatever other checkpoints need that are no ancestors of DIR stays.

Memory comes back in blocks of up to 64 pages: one of which a page is needed stays. --thorough writes DIR anew, with such remains in it, and
so gives back what a program leaves that writes here and there. DIR then has a new id: the next dump with it as its parent compares
all memory once.`,
		Example:           "  stasis dedup newest\n  stasis dedup /srv/three --yes",
		Args:              oneArg("the checkpoint"),
		ValidArgsFunction: a.completeCheckpoint,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runDedup(cmd.Context(), args[0], o, yes) },
	}
	addChangeFlags(cmd, &o)
	cmd.Flags().BoolVar(&o.Thorough, "thorough", false, "also give back blocks that are needed in part: write DIR anew with what it needs of them")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) runDedup(ctx context.Context, arg string, o chain.Options, yes bool) error {
	dir, err := a.locate(arg)
	if err != nil {
		return err
	}
	partly := int64(0)
	report, err := chain.Dedup(ctx, dir, o, func(p *chain.DedupPlan) error {
		partly = p.Partly
		if yes || o.DryRun {
			return nil
		}
		return a.confirmDedup(p)
	})
	if err != nil {
		return err
	}
	if err := a.showReport(report, o.DryRun, dir); err != nil || a.output == outputJSON || a.quiet {
		return err
	}
	if len(report.Marked) == 0 && report.Freed <= 0 && len(report.Later) == 0 {
		fmt.Fprintf(a.err, "every block that ancestors of %s hold is needed, at least in part: all of them stay as they are\n", printable(arg))
	}
	if !o.Thorough && partly > worthwhile {
		fmt.Fprintf(a.err, "about %s more are in blocks that are needed in part: --thorough gives them back\n", inBytes(partly))
	}
	return nil
}

// worthwhile is how many bytes are worth a hint.
const worthwhile = 1 << 20

// confirmDedup asks whether checkpoints may be lost. Pre-dumps were none, and nobody is asked about them.
func (a *app) confirmDedup(p *chain.DedupPlan) error {
	var lost []string
	for _, i := range p.Lost {
		if i.Kind != image.KindPreDump {
			lost = append(lost, printable(filepath.Base(i.Dir)))
		}
	}
	if len(lost) == 0 {
		return nil
	}
	list := strings.Join(lost, ", ")
	if !terminal(a.in) || a.output == outputJSON {
		return badInput("%s can't be restored any more afterwards (about %s would be given back): say --yes if that is meant", list, inBytes(p.Bytes))
	}
	fmt.Fprintf(a.err, "%s can't be restored any more afterwards; about %s will be given back. Go on? [y/N] ", list, inBytes(p.Bytes))
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && answer == "" {
		return badInput("no answer: nothing was done")
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return badInput("nothing was done")
	}
	return nil
}
