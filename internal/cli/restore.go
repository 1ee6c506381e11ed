package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"stasis"
)

// restoreFlags are the flags of a restore.
type restoreFlags struct {
	path    string
	streams int
	lazy    bool
	detach  bool
	sibling bool
	force   bool
	pidfile string
	inherit []string
	near    []string
	track   bool
	trust   bool
	criu    stasis.CRIUOptions
}

// restoreCommand is CRIU's form of a restore, and the parent of the form with a noun.
func (a *app) restoreCommand() *cobra.Command {
	f := &restoreFlags{}
	cmd := &cobra.Command{
		Use:   "restore --images-dir DIR [flags]",
		Short: "Bring the processes of a checkpoint back",
		Long: `Brings the processes of a checkpoint back, under the process ids that they had.

This form takes CRIU's flags (-D is --images-dir); "stasis restore process --path DIR" does the same.`,
		Example: "  stasis restore -D /srv/checkpoints/one --restore-detached",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runRestore(cmd, "images-dir", f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.path, "images-dir", "D", "", "`DIR` or name of the checkpoint; - is standard input")
	aliases(flags, map[string]string{"path": "images-dir", "dir": "images-dir", "restore-detached": "detach", "verbosity": "log-level"})
	must(cmd.MarkFlagDirname("images-dir"))
	f.add(cmd)
	cmd.AddCommand(a.restoreProcessCommand(), a.restoreJobCommand())
	return cmd
}

func (a *app) restoreProcessCommand() *cobra.Command {
	f := &restoreFlags{}
	cmd := &cobra.Command{
		Use:   "process --path DIR",
		Short: "Bring the processes of a checkpoint back",
		Long: `Brings the processes of a checkpoint back, under the process ids that they had. DIR is a folder, the name of a checkpoint in
the default folder, or - for a stream on standard input.

The processes run under this command: it stays until the first of them ends, passes signals on to it, and exits with its exit
code (128+N where signal N killed it). With --detach it prints the process id and returns as soon as the restore is complete.
With --lazy the processes run at once, and their memory is brought while they do, what they touch first.

Options of CRIU are those of the dump; those that are given here go before them.`,
		Example: `  stasis restore process --path before-update
  stasis restore process --path /srv/one --lazy --detach --pidfile /run/one.pid
  stasis dump process 4711 --dir - | ssh host stasis restore process --path -`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && f.path == "" {
				return &inputError{err: fmt.Errorf("unexpected argument %q: write stasis restore process --path %[1]s", args[0]), help: cmd.CommandPath()}
			}
			return noArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runRestore(cmd, "path", f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.path, "path", "D", "", "`DIR` or name of the checkpoint; - is standard input")
	aliases(flags, map[string]string{"images-dir": "path", "dir": "path", "restore-detached": "detach", "verbosity": "log-level"})
	must(cmd.RegisterFlagCompletionFunc("path", a.completeCheckpoint))
	f.add(cmd)
	return cmd
}

// add gives a command the flags that both forms have.
func (f *restoreFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&f.streams, "stream", 0, "insist on `N` streams; the checkpoint knows how many it has")
	flags.BoolVar(&f.lazy, "lazy", false, "let the processes run at once, and bring their memory meanwhile")
	flags.BoolVarP(&f.detach, "detach", "d", false, "return when the restore is complete, and print the process id (also --restore-detached)")
	flags.BoolVar(&f.force, "force", false, "restore although a check found a conflict that can be coped with, such as another kernel or a changed file")
	flags.BoolVar(&f.trust, "trust", false, "restore although somebody else could have written the checkpoint, who then decides as whom its processes run")
	flags.BoolVar(&f.track, "track-mem", false, "keep track of what is written from the first instruction on, for a dump on top of this checkpoint; not with --lazy")
	flags.StringArrayVar(&f.near, "also", nil, "also look in `DIR` for the checkpoints that this one builds on; may be repeated")
	flags.StringVar(&f.pidfile, "pidfile", "", "write the process id of the root to `FILE`")
	flags.StringArrayVar(&f.inherit, "inherit-fd", nil, "descriptor N of this command for an external resource, `fd[N]:KEY`; may be repeated")
	flags.BoolVarP(&f.sibling, "restore-sibling", "S", false, "with --detach: the root becomes a child of the caller of this command")
	addCRIUFlags(cmd, "restore", &f.criu)
}

// runRestore restores a checkpoint as the flags say; pathFlag is the name of the flag with the checkpoint.
func (a *app) runRestore(cmd *cobra.Command, pathFlag string, f *restoreFlags) (err error) {
	ctx := cmd.Context()
	if f.path == "" {
		return &inputError{err: fmt.Errorf("--%s is missing: give the folder or the name of a checkpoint", pathFlag), help: cmd.CommandPath()}
	}
	if cmd.Flags().Changed("stream") && f.streams < 1 {
		return badInput("--stream %d: leave it out, the checkpoint knows how many streams it has", f.streams)
	}
	if f.sibling && !f.detach {
		return badInput("--restore-sibling: only the caller of this command can wait for such a process; add --detach")
	}
	if err := f.criu.Validate(); err != nil {
		return badInput("%w", err)
	}
	inherited, err := inheritFDs(f.inherit)
	if err != nil {
		return err
	}
	defer closeAll(inherited)
	pidfile, err := openPidfile(f.pidfile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pidfile.Close()) }()

	options := stasis.RestoreOptions{Streams: f.streams, Lazy: f.lazy, Force: f.force, Sibling: f.sibling, CRIUPath: a.criuPath, Near: f.near, Track: f.track}
	cleanUp := func() error { return nil }
	if f.path == standardStream {
		received, err := a.receive(ctx)
		if err != nil {
			return err
		}
		options.Dir, cleanUp = received.dir, received.Close
	} else if options.Dir, err = a.locate(f.path); err != nil {
		return err
	}
	if err := a.trusted(f, options.Dir); err != nil {
		return errors.Join(err, cleanUp())
	}
	options.AdjustCRIU = adjustCRIU(cmd, f, inherited)
	result, err := a.restoreAndTell(ctx, f, options, pidfile)
	if err = errors.Join(err, cleanUp()); err != nil || f.detach {
		return err
	}
	code, err := waitFor(result.PID)
	if err != nil {
		return err
	}
	return exitStatus(code)
}

// adjustCRIU changes the options of the dump as the flags say; nil when they say nothing.
func adjustCRIU(cmd *cobra.Command, f *restoreFlags, inherited map[string]*os.File) func(*stasis.CRIUOptions) {
	given := len(inherited) > 0
	for _, c := range criuFlags {
		given = given || cmd.Flags().Changed(c.name)
	}
	if !given {
		return nil
	}
	return func(o *stasis.CRIUOptions) {
		*o = overrideCRIU(cmd.Flags(), o, &f.criu)
		o.InheritFDs = inherited
	}
}

func (a *app) restoreAndTell(ctx context.Context, f *restoreFlags, options stasis.RestoreOptions, pidfile *pidfile) (*stasis.RestoreResult, error) {
	view := a.progress()
	defer view.Close()
	var notWritten error
	shared := false // the restored tree has this terminal
	options.Progress = view.update
	options.Resumed = func(r *stasis.RestoreResult) {
		notWritten = pidfile.write(r.PID)
		if f.detach {
			return
		}
		if shared = inForeground(r.PID); shared {
			view.Close()
		}
		a.signals.forwardTo(func(sig syscall.Signal) { passOn(r.PID, sig) })
	}
	result, err := a.restore(ctx, options)
	view.Close()
	if err != nil {
		pidfile.written = false // what ran runs no more
		return nil, errors.Join(err, notWritten)
	}
	report := reportOfRestore(result, f, options.Dir)
	switch {
	case a.output == outputJSON:
		err = a.writeJSON(report)
	case f.detach:
		fmt.Fprintln(a.out, result.PID)
		fallthrough
	default:
		if !a.quiet && !shared {
			for _, warning := range result.Warnings {
				fmt.Fprintln(a.err, "stasis: warning:", warning)
			}
			fmt.Fprintln(a.err, report.sentence())
		}
	}
	return result, errors.Join(err, notWritten)
}

// restoreReport is the result of a restore, for programs.
type restoreReport struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	Dir            string `json:"dir,omitempty"` // absent when it came from standard input
	PID            int    `json:"pid"`           // of the root, as this machine sees it
	PIDs           []int  `json:"pids"`          // of all processes, as they see themselves
	Command        string `json:"command"`
	Detached       bool   `json:"detached"`
	Lazy           bool   `json:"lazy"`
	Streams        int    `json:"streams"`
	BytesMemory    int64  `json:"bytes_memory"`
	ToResumeUS     int64  `json:"to_resume_us"` // until the tree ran
	TookUS         int64  `json:"took_us"`      // until all memory was in place
	BytesPerSecond int64  `json:"bytes_per_second"`

	Warnings []string `json:"warnings,omitempty"` // what was not as where the checkpoint was made
}

func reportOfRestore(result *stasis.RestoreResult, f *restoreFlags, dir string) restoreReport {
	r := restoreReport{
		PID: result.PID, PIDs: result.PIDs, Detached: f.detach, Lazy: f.lazy, BytesMemory: result.BytesMemory,
		ToResumeUS: result.ToResume.Microseconds(), TookUS: result.Took.Microseconds(),
		BytesPerSecond: perSecond(result.BytesMemory, result.Took), Warnings: result.Warnings,
	}
	if f.path != standardStream {
		if r.Dir = dir; dir != "" {
			if absolute, err := filepath.Abs(dir); err == nil {
				r.Dir = absolute
			}
		}
	}
	if m := result.Manifest; m != nil {
		r.ID, r.Name, r.Streams, r.Command = m.ID, m.Name, len(m.Shards), commandOf(m)
	}
	return r
}

// sentence says it all in one line.
func (r *restoreReport) sentence() string {
	text := fmt.Sprintf("restored %s (%d", printable(r.Command), r.PID)
	if others := len(r.PIDs) - 1; others > 0 {
		text += fmt.Sprintf(" and %d more", others)
	}
	text += fmt.Sprintf("): it ran after %s", span(micros(r.ToResumeUS)))
	return text + fmt.Sprintf("; %s of memory from %s in %s (%s)", inBytes(r.BytesMemory), plural(r.Streams, "stream"),
		span(micros(r.TookUS)), rate(r.BytesMemory, micros(r.TookUS)))
}

// pidfile is the file of --pidfile. It is opened early, so that a restore does not fail when everything else is done.
type pidfile struct {
	file    *os.File // nil: none was asked for
	made    bool     // it was not there before
	written bool
}

func openPidfile(path string) (*pidfile, error) {
	if path == "" {
		return &pidfile{}, nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	made := err == nil
	if errors.Is(err, os.ErrExist) {
		file, err = os.OpenFile(path, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, badInput("--pidfile: %w", err)
	}
	return &pidfile{file: file, made: made}, nil
}

func (p *pidfile) write(pid int) error {
	if p.file == nil {
		return nil
	}
	err := p.file.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintln(p.file, pid)
	}
	if err != nil {
		return fmt.Errorf("the processes run, but --pidfile could not be written: %w", err)
	}
	p.written = true
	return nil
}

// Close removes a file that says nothing.
func (p *pidfile) Close() error {
	if p.file == nil {
		return nil
	}
	err := p.file.Close()
	if p.made && !p.written {
		err = errors.Join(err, os.Remove(p.file.Name()))
	}
	if err != nil {
		return fmt.Errorf("--pidfile: %w", err)
	}
	return nil
}
