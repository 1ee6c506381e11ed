package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"stasis"
)

// exportFlags are the flags of an export.
type exportFlags struct {
	out   string
	chain bool
	also  []string
}

func (a *app) exportCommand() *cobra.Command {
	f := &exportFlags{}
	cmd := &cobra.Command{
		Use:   "export --criu OUT DIR",
		Short: "Write a checkpoint as images that stock CRIU restores",
		Long: `Writes a checkpoint as a folder of CRIU's own images, so that "criu restore -D OUT" restores it without Stasis. DIR is a folder or
the name of a checkpoint in the default folder. It may be any of a chain: the pages of its ancestors are put into the one folder.

With --chain each checkpoint of the chain, from the oldest to DIR, gets a folder of its own in OUT, named 1, 2 and so on, with links
called parent and without the pages that are the same in the one before, as CRIU makes them.

OUT must not be there, or be empty. It gets its name when all of it is written and on the disk; when the export fails, nothing is
left. The checkpoint stays as it is.`,
		Example: `  stasis export --criu /srv/images before-update
  criu restore -D /srv/images`,
		Args:              oneArg("the checkpoint"),
		ValidArgsFunction: a.completeCheckpoint,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.out == "" {
				return &inputError{err: fmt.Errorf("--criu is missing: give the folder for CRIU's images"), help: cmd.CommandPath()}
			}
			return a.runExport(cmd.Context(), args[0], f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.out, "criu", "", "folder `OUT` for CRIU's images, made where its parent exists")
	flags.BoolVar(&f.chain, "chain", false, "a folder for each checkpoint of the chain, with links called parent")
	flags.StringArrayVar(&f.also, "also", nil, "look for the checkpoints that this one builds on in `DIR`, too; may be repeated")
	must(cmd.MarkFlagDirname("criu"))
	must(cmd.MarkFlagDirname("also"))
	return cmd
}

// exportReport is the result for programs.
type exportReport struct {
	*stasis.ExportResult
	TookUS         int64 `json:"took_us"`
	BytesPerSecond int64 `json:"bytes_per_second"`
}

func (a *app) runExport(ctx context.Context, arg string, f *exportFlags) error {
	dir, err := a.locate(arg)
	if err != nil {
		return err
	}
	if err := checkParent(f.out); err != nil {
		return err
	}
	view := a.progress()
	defer view.Close()
	made, err := stasis.Export(ctx, stasis.ExportOptions{
		Dir: dir, Near: f.also, Out: f.out, Chain: f.chain, Progress: func(p stasis.Progress) { view.show("writing", p.Done, p.Total) },
	})
	view.Close()
	if err != nil {
		return err //nolint:wrapcheck // it says all there is to say
	}
	report := exportReport{
		ExportResult: made, TookUS: made.Took.Microseconds(), BytesPerSecond: perSecond(made.Bytes, made.Took),
	}
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	if !a.quiet {
		a.tellExport(&report)
	}
	return nil
}

func (a *app) tellExport(r *exportReport) {
	for _, note := range r.Notes {
		fmt.Fprintf(a.err, "stasis: note: %s\n", printable(note))
	}
	fmt.Fprintf(a.out, "exported to %s: %s in %s, in %s (%s); restore with\n  %s\n", r.Out, inBytes(r.Bytes),
		plural(len(r.Folders), "folder"), span(micros(r.TookUS)), rate(r.Bytes, micros(r.TookUS)), shellWords(r.Command))
}

// shellWords writes a command so that it can be pasted.
func shellWords(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		if strings.ContainsFunc(w, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=@%+,-", r)
		}) || w == "" {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		quoted[i] = w
	}
	return strings.Join(quoted, " ")
}
