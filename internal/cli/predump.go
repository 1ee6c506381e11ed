package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"stasis"
)

// preDumpFlags are the flags of a pre-dump.
type preDumpFlags struct {
	pid, dir, name string
	write          writeFlags
	maxRounds      int
	chain          chainFlags
	given          func(flag string) bool
}

// preDumpCommand is CRIU's form of a pre-dump, and the parent of the form with a noun.
func (a *app) preDumpCommand() *cobra.Command {
	f := &preDumpFlags{}
	cmd := &cobra.Command{
		Use:   "pre-dump --pid PID --images-dir DIR [flags]",
		Short: "Copy the memory of a process ahead of a dump, while it runs",
		Long: `Copies the memory of a process and its descendants while they run, and keeps track of what they write from then on. A dump on top
of it (--prev-images-dir or --parent) copies only that, and a pre-dump on top of it as well.

A pre-dump holds memory alone: it cannot be restored, and is no checkpoint. The tracking goes on until the process ends, or
"stasis trackers stop PID" is called.`,
		Example: `  stasis pre-dump -t 4711 -D /srv/one/pre
  stasis dump -t 4711 -D /srv/one/final --prev-images-dir ../pre`,
		Args: dumpArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.given = cmd.Flags().Changed
			switch {
			case f.pid == "":
				return &inputError{err: fmt.Errorf("which process? Write stasis pre-dump process PID, or stasis pre-dump --pid PID --images-dir DIR"), help: cmd.CommandPath()}
			case f.dir == "":
				return &inputError{err: fmt.Errorf("--images-dir is missing: give the folder for the pre-dump"), help: cmd.CommandPath()}
			}
			return a.runPreDump(cmd.Context(), f.pid, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.pid, "pid", "t", "", "root `PID` of the process tree (also --tree)")
	flags.StringVarP(&f.dir, "images-dir", "D", "", "`DIR` for the pre-dump, made where its parent exists")
	var trackMem bool
	flags.BoolVar(&trackMem, "track-mem", false, "a pre-dump always does")
	must(flags.MarkHidden("track-mem"))
	aliases(flags, map[string]string{"tree": "pid", "dir": "images-dir", "verbosity": "log-level"})
	must(cmd.RegisterFlagCompletionFunc("pid", completePID))
	must(cmd.MarkFlagDirname("images-dir"))
	f.add(cmd)
	cmd.AddCommand(a.preDumpProcessCommand())
	return cmd
}

func (a *app) preDumpProcessCommand() *cobra.Command {
	f := &preDumpFlags{}
	cmd := &cobra.Command{
		Use:   "process PID",
		Short: "Copy the memory of the process PID ahead of a dump, while it runs",
		Long: `Copies the memory of a process and its descendants while they run, to a folder (--dir) or by name into the default folder (--name).
"stasis pre-dump" says what it is good for.`,
		Example: `  stasis pre-dump process 4711 --name night-pre
  stasis dump process 4711 --name night --parent night-pre`,
		Args:              oneArg("the process id"),
		ValidArgsFunction: completePID,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			return a.runPreDump(cmd.Context(), args[0], f)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.dir, "dir", "D", "", "`DIR` for the pre-dump, made where its parent exists")
	flags.StringVar(&f.name, "name", "", "`NAME` of the pre-dump in the default folder")
	aliases(flags, map[string]string{"images-dir": "dir", "verbosity": "log-level"})
	must(cmd.MarkFlagDirname("dir"))
	f.add(cmd)
	return cmd
}

func (f *preDumpFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	f.chain.addParent(cmd)
	f.chain.addTracker(cmd)
	f.write.addConfigured(cmd)
	flags.IntVar(&f.maxRounds, "max-rounds", 0, "copy memory at most `N` times (default 1); what is written meanwhile is left to the dump")
}

// options turns flags and configuration into what the library takes.
func (a *app) preDumpOptions(pid int, f *preDumpFlags) (o stasis.PreDumpOptions, err error) {
	how, err := f.write.settle(f.given, &a.config.Checkpoint)
	if err != nil {
		return o, err
	}
	o = stasis.PreDumpOptions{
		PID: pid, Streams: how.streams, Compression: how.compression, Level: how.level, MaxRounds: f.maxRounds, Tracker: f.chain.tracker,
	}
	if f.given("max-rounds") && f.maxRounds < 1 {
		return o, badInput("--max-rounds %d: it must be at least 1", f.maxRounds)
	}
	if f.dir == standardStream {
		return o, badInput("a pre-dump goes to a folder, where the dump on top of it finds it: give one instead of -")
	}
	if f.dir != "" && f.name != "" {
		return o, badInput("--dir and --name both say where the pre-dump goes: choose one")
	}
	where, err := a.placeOf(pid, f.dir, f.name)
	if err != nil {
		return o, err
	}
	o.Dir, o.Name = where.dir, where.name
	o.Parent, err = a.parentDir(&f.chain, o.Dir)
	return o, err
}

func (a *app) runPreDump(ctx context.Context, process string, f *preDumpFlags) error {
	pid, err := parsePID(process)
	if err != nil {
		return err
	}
	options, err := a.preDumpOptions(pid, f)
	if err != nil {
		return err
	}
	view := a.progress()
	defer view.Close()
	options.Progress = view.update
	begun := time.Now()
	result, err := a.preDump(ctx, options)
	view.Close()
	if err != nil {
		return err
	}
	return a.tellDump(reportOfDump(pid, result, time.Since(begun)))
}
