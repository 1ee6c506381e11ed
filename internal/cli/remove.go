package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"stasis/internal/chain"
)

func (a *app) rmCommand() *cobra.Command {
	var o chain.Options
	cmd := &cobra.Command{
		Use:   "rm DIR…",
		Short: "Remove checkpoints without breaking those that build on them",
		Long: `Removes checkpoints; DIR is a folder or the name of one in the default folder. Memory that other checkpoints need stays in the folder
until the last of them goes, and the rest is given back at once. What is being dumped on or restored is refused.

Checkpoints elsewhere that build on one of these are known to it, where they were dumped by Stasis. While one of those is not to be
found, or one beside it can't be read, nothing that they may need is given back: --force takes no account of them.`,
		Example:           "  stasis rm before-update\n  stasis rm /srv/one /srv/two --dry-run",
		Args:              someArgs("which checkpoint? Give a folder, or a name that stasis checkpoints lists"),
		ValidArgsFunction: a.completeCheckpoints,
		RunE:              func(_ *cobra.Command, args []string) error { return a.runRm(args, o) },
	}
	addChangeFlags(cmd, &o)
	cmd.AddCommand(a.rmJobCommand())
	return cmd
}

// addChangeFlags adds what all commands have that give memory back.
func addChangeFlags(cmd *cobra.Command, o *chain.Options) {
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVarP(&o.DryRun, "dry-run", "n", false, "only say what would be done")
	cmd.Flags().BoolVar(&o.Force, "force", false, "take no account of checkpoints that can't be read or found, though they may need the memory")
	cmd.Flags().StringArrayVar(&o.Roots, "also", nil, "also look in `DIR` for checkpoints that build on these, or that these build on; may be repeated")
	must(cmd.MarkFlagDirname("also"))
}

// someArgs wants at least one argument.
func someArgs(missing string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return &inputError{err: fmt.Errorf("%s", missing), help: cmd.CommandPath()}
		}
		return nil
	}
}

func (a *app) runRm(args []string, o chain.Options) error {
	dirs := make([]string, len(args))
	var gone []string
	for i, arg := range args {
		dir, err := a.locate(arg)
		if err != nil {
			return err
		}
		dirs[i] = dir
		if !hasManifest(dir) {
			gone = append(gone, arg)
		}
	}
	report, err := chain.Remove(dirs, o)
	if err != nil {
		return err
	}
	if a.output != outputJSON && !a.quiet {
		for _, arg := range gone {
			fmt.Fprintf(a.err, "%s was removed already; what is left of it goes with the last checkpoint that needs it\n", printable(arg))
		}
	}
	return a.showReport(report, o.DryRun, "")
}

// showReport tells what became of checkpoints. top is the one that was kept by dedup, or "".
func (a *app) showReport(r *chain.Report, dry bool, top string) error {
	if a.output == outputJSON {
		return a.writeJSON(r)
	}
	if a.quiet {
		return nil
	}
	done := func(what string) string {
		if dry {
			return "would be " + what
		}
		return what
	}
	for _, i := range r.Removed {
		fmt.Fprintf(a.out, "%s %s\n", printable(i.Dir), done("removed"))
	}
	for _, i := range r.Marked {
		fmt.Fprintf(a.out, "%s %s: it can't be restored any more\n", printable(i.Dir), done("deduplicated"))
	}
	earlier := func(k chain.Kept) bool { // it was removed before, which its owner was told then
		return len(r.Removed) > 0 && !slices.ContainsFunc(r.Removed, func(i chain.Item) bool { return i.Dir == k.Dir })
	}
	for _, k := range r.Kept {
		if top == "" && k.Bytes > 0 && !earlier(k) {
			fmt.Fprintf(a.out, "  %s of %s %s for %s\n", inBytes(k.Bytes), printable(k.Dir), done("kept"), users(k.For))
		}
	}
	for i, k := range r.Later {
		if slices.IndexFunc(r.Later, func(other chain.Kept) bool { return other.Why == k.Why }) < i {
			continue // one reason is mostly that of all
		}
		var dirs []string
		for _, other := range r.Later[i:] {
			if other.Why == k.Why {
				dirs = append(dirs, printable(other.Dir))
			}
		}
		fmt.Fprintf(a.out, "  nothing of %s is given back for now: %s\n", strings.Join(dirs, ", "), printable(k.Why))
	}
	about := ""
	if dry {
		about = "about "
	}
	fmt.Fprintf(a.out, "%s%s %s\n", about, inBytes(max(r.Freed, 0)), done("given back"))
	return nil
}

// users lists the checkpoints that need something.
func users(dirs []string) string {
	names := make([]string, 0, 3)
	for i, dir := range dirs {
		if i == 3 {
			names = append(names, fmt.Sprintf("%d more", len(dirs)-i))
			break
		}
		names = append(names, printable(filepath.Base(dir)))
	}
	if len(names) == 0 {
		return "others"
	}
	return strings.Join(names, ", ")
}

// completeCheckpoints completes any number of names.
func (a *app) completeCheckpoints(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.completeCheckpoint(cmd, nil, typed)
}
