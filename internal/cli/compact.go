package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"stasis/internal/chain"
	"stasis/internal/codec"
	"stasis/internal/store"
)

// compactFlags are the flags of compact.
type compactFlags struct {
	to, name  string
	write     writeFlags
	ancestors []string
	given     func(flag string) bool
}

func (a *app) compactCommand() *cobra.Command {
	f := &compactFlags{}
	cmd := &cobra.Command{
		Use:   "compact DIR",
		Short: "Make one checkpoint of a chain, which needs no others",
		Long: `Reads a checkpoint with all that lies in its ancestors and writes one that needs no others; no process is needed. DIR is a folder or the
name of a checkpoint in the default folder. The new one has a new id: the next dump with it as its parent compares all memory once.

Without --dir or --name it takes the place of the old one, in one step and not before it was verified. Checkpoints that build on the old
one go on: what they need of it stays beside it, in a folder whose name begins with a dot, until the last of them goes.`,
		Example:           "  stasis compact newest\n  stasis compact newest --name newest-alone --compression zstd",
		Args:              oneArg("the checkpoint"),
		ValidArgsFunction: a.completeCheckpoint,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			return a.runCompact(cmd.Context(), args[0], f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&f.to, "dir", "D", "", "`DIR` for the new checkpoint, made where its parent exists")
	flags.StringVar(&f.name, "name", "", "`NAME` of the new checkpoint in the default folder")
	f.write.add(cmd, "as many as the old one has", "that of the old one")
	flags.StringArrayVar(&f.ancestors, "also", nil, "also look in `DIR` for the checkpoints that this one builds on; may be repeated")
	must(cmd.MarkFlagDirname("dir"))
	must(cmd.MarkFlagDirname("also"))
	return cmd
}

// compactReport is the result for programs.
type compactReport struct {
	ID     string        `json:"id"`
	Dir    string        `json:"dir"`
	Memory int64         `json:"bytes_memory"`
	Stored int64         `json:"bytes_stored"`
	TookUS int64         `json:"took_us"`
	Old    *chain.Report `json:"old,omitempty"` // what became of the old one, where the new one took its place
}

func (a *app) compactOptions(f *compactFlags) (o chain.CompactOptions, err error) {
	o.Roots, o.Shards = f.ancestors, f.write.streams
	if err := f.write.check(f.given, "as many as the old one has"); err != nil {
		return o, err
	}
	switch {
	case f.to != "" && f.name != "":
		return o, badInput("--dir and --name both say where the checkpoint goes: choose one")
	case f.write.level != 0 && f.write.compression == "":
		return o, badInput("--level needs --compression: each codec has levels of its own")
	}
	if f.write.compression != "" {
		if o.Codec, err = codec.New(f.write.compression, f.write.level); err != nil {
			return o, badInput("%w", err)
		}
	}
	if o.To = f.to; f.name != "" {
		if err := checkName(f.name); err != nil {
			return o, err
		}
		o.To = filepath.Join(a.config.Checkpoint.Dir, f.name)
	}
	if o.To != "" {
		if hasManifest(o.To) { // what follows would find it locked first, as an ancestor
			return o, fmt.Errorf("cannot write a checkpoint to %s: one %w there: choose another folder, or remove that checkpoint first", o.To, store.ErrExists)
		}
		return o, checkParent(o.To)
	}
	return o, nil
}

func (a *app) runCompact(ctx context.Context, arg string, f *compactFlags) error {
	o, err := a.compactOptions(f)
	if err != nil {
		return err
	}
	dir, err := a.locate(arg)
	if err != nil {
		return err
	}
	view := a.progress()
	defer view.Close()
	o.Progress = func(done, total int64) { view.show("copying blocks", done, total) }
	begun := time.Now()
	made, err := chain.Compact(ctx, dir, o)
	view.Close()
	if err != nil {
		return err
	}
	took := time.Since(begun)
	figures := made.Manifest.Figures
	if a.output == outputJSON {
		return a.writeJSON(compactReport{made.Manifest.ID, made.Dir, figures.BytesMemory, figures.BytesStored, took.Microseconds(), made.Report})
	}
	if a.quiet {
		return nil
	}
	fmt.Fprintf(a.out, "checkpoint %s needs no others now: %s of memory in %s, written in %s\n", printable(made.Dir),
		inBytes(figures.BytesMemory), inBytes(figures.BytesStored), span(took))
	if r := made.Report; r != nil {
		r.Removed = nil // it is the one that was asked for
		return a.showReport(r, false, "")
	}
	return nil
}
