package cli

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"stasis"
	"stasis/internal/image"
)

// dumpFlags are the flags of a dump.
type dumpFlags struct {
	dir, name    string
	write        writeFlags
	leaveRunning bool
	leaveStopped bool
	engine       string
	maxRounds    int
	maxPause     time.Duration
	finalBuffer  int64
	chain        chainFlags
	criu         stasis.CRIUOptions
	pid          string // of the form with --pid
	given        func(flag string) bool
}

// dumpCommand is CRIU's form of a dump, and the parent of the form with a noun.
func (a *app) dumpCommand() *cobra.Command {
	f := &dumpFlags{}
	cmd := &cobra.Command{
		Use:   "dump --pid PID --images-dir DIR [flags]",
		Short: "Save a process and its descendants to a checkpoint",
		Long: `Saves a process and its descendants to a checkpoint. They run on while their memory is copied, and stand still for the last
changes only. When the checkpoint is complete and on the disk, they are killed, unless told otherwise; when the dump fails, they
run on as if nothing had happened.

This form takes CRIU's flags (-t is --pid, -D is --images-dir); "stasis dump process PID" does the same.`,
		Example: "  stasis dump -t 4711 -D /srv/checkpoints/one --leave-running",
		Args:    dumpArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.given = cmd.Flags().Changed
			switch {
			case f.pid == "":
				return &inputError{err: fmt.Errorf("which process? Write stasis dump process PID, or stasis dump --pid PID --images-dir DIR"), help: cmd.CommandPath()}
			case f.dir == "":
				return &inputError{err: fmt.Errorf("--images-dir is missing: give the folder for the checkpoint"), help: cmd.CommandPath()}
			}
			return a.runDump(cmd.Context(), f.pid, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.pid, "pid", "t", "", "root `PID` of the process tree (also --tree)")
	flags.StringVarP(&f.dir, "images-dir", "D", "", "`DIR` for the checkpoint, made where its parent exists; - is standard output")
	aliases(flags, map[string]string{"tree": "pid", "dir": "images-dir", "verbosity": "log-level"})
	must(cmd.RegisterFlagCompletionFunc("pid", completePID))
	must(cmd.MarkFlagDirname("images-dir"))
	f.add(cmd)
	cmd.AddCommand(a.dumpProcessCommand(), a.dumpJobCommand())
	return cmd
}

// dumpArgs explains what may have been meant by an argument of "dump".
func dumpArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if _, err := parsePID(args[0]); err == nil {
		return &inputError{err: fmt.Errorf("unexpected argument %q: to dump process %[1]s, write stasis dump process %[1]s", args[0]), help: cmd.CommandPath()}
	}
	return noArgs(cmd, args)
}

func (a *app) dumpProcessCommand() *cobra.Command {
	f := &dumpFlags{}
	cmd := &cobra.Command{
		Use:   "process PID",
		Short: "Save the process PID and its descendants to a checkpoint",
		Long: `Saves a process and its descendants to a checkpoint: to a folder (--dir), by name into the default folder (--name, and where
neither is given, under a name made of the command and the time), or as one stream to standard output (--dir -).

They run on while their memory is copied, and stand still for the last changes only. When the checkpoint is complete and on the
disk, they are killed, unless told otherwise; when the dump fails, they run on as if nothing had happened. A dump to standard
output is complete when the program that reads it has taken all of it.`,
		Example: `  stasis dump process 4711 --name before-update --leave-running
  stasis dump process 4711 --dir /srv/one --stream 4 --compression zstd
  stasis dump process 4711 --dir - | ssh host stasis restore process --path -`,
		Args:              oneArg("the process id"),
		ValidArgsFunction: completePID,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			return a.runDump(cmd.Context(), args[0], f)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.dir, "dir", "D", "", "`DIR` for the checkpoint, made where its parent exists; - is standard output")
	flags.StringVar(&f.name, "name", "", "`NAME` of the checkpoint in the default folder")
	aliases(flags, map[string]string{"images-dir": "dir", "verbosity": "log-level"})
	must(cmd.MarkFlagDirname("dir"))
	f.add(cmd)
	return cmd
}

// add gives a command the flags that both forms have.
func (f *dumpFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	f.write.addConfigured(cmd)
	flags.BoolVarP(&f.leaveRunning, "leave-running", "R", false, "let the tree run on afterwards")
	flags.BoolVarP(&f.leaveStopped, "leave-stopped", "s", false, "leave the tree stopped afterwards, as by SIGSTOP")
	f.chain.add(cmd)
	addCRIUFlags(cmd, "dump", &f.criu)
	flags.Var(oneOf{&f.engine, engineNames()}, "engine", "`HOW` memory is kept from CRIU: auto, blind, lazy-pages or criu (default auto)")
	flags.IntVar(&f.maxRounds, "max-rounds", 0, fmt.Sprintf("copy memory at most `N` times while the tree runs (default %d)", stasis.DefaultRounds))
	flags.DurationVar(&f.maxPause, "max-pause", 0, fmt.Sprintf("go on copying while the last copy would take longer than this `TIME` (default %v)", stasis.DefaultMaxPause))
	flags.Var(&size{most: math.MaxInt, into: func(n int64) { f.finalBuffer = n }}, "final-buffer",
		fmt.Sprintf("use at most this `SIZE` of RAM for the last pages (default %s)", inBytes(stasis.DefaultFinalBuffer)))
	must(cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(engineNames(), cobra.ShellCompDirectiveNoFileComp)))
}

// options turns flags and configuration into what the library takes. Where the checkpoint goes is not part of it.
func (a *app) dumpOptions(pid int, f *dumpFlags) (stasis.DumpOptions, error) {
	o := stasis.DumpOptions{
		PID:    pid,
		Engine: stasis.Engine(f.engine), CRIU: f.criu, CRIUPath: a.criuPath,
		MaxRounds: f.maxRounds, MaxPause: f.maxPause, FinalBuffer: int(f.finalBuffer),
	}
	switch {
	case f.leaveRunning && f.leaveStopped:
		return o, badInput("--leave-running and --leave-stopped contradict each other: choose one")
	case f.leaveRunning:
		o.After = stasis.AfterRun
	case f.leaveStopped:
		o.After = stasis.AfterStop
	}
	how, err := f.write.settle(f.given, &a.config.Checkpoint)
	if err != nil {
		return o, err
	}
	o.Streams, o.Compression, o.Level = how.streams, how.compression, how.level
	if f.given("max-rounds") && f.maxRounds < 1 {
		return o, badInput("--max-rounds %d: it must be at least 1", f.maxRounds)
	}
	if f.given("max-pause") && f.maxPause <= 0 {
		return o, badInput("--max-pause %v: it must be more than 0, such as 2ms", f.maxPause)
	}
	if err := f.criu.Validate(); err != nil {
		return o, badInput("%w", err)
	}
	return o, nil
}

// runDump dumps a process as the flags say.
func (a *app) runDump(ctx context.Context, process string, f *dumpFlags) error {
	pid, err := parsePID(process)
	if err != nil {
		return err
	}
	if f.dir != "" && f.name != "" {
		return badInput("--dir and --name both say where the checkpoint goes: choose one")
	}
	options, err := a.dumpOptions(pid, f)
	if err != nil {
		return err
	}
	if f.dir == standardStream {
		out, ok := a.out.(*os.File)
		if !ok {
			return badInput("--dir -: standard output is not open")
		}
		pipe, err := dumpToPipe(ctx, out)
		if err != nil {
			return err
		}
		defer pipe.Close()
		options.Target = pipe
	} else {
		where, err := a.placeOf(pid, f.dir, f.name)
		if err != nil {
			return err
		}
		options.Dir, options.Name = where.dir, where.name
	}
	if err := a.chain(&f.chain, &options); err != nil {
		return err
	}
	return a.dumpAndTell(ctx, options)
}

func (a *app) dumpAndTell(ctx context.Context, options stasis.DumpOptions) error {
	view := a.progress()
	defer view.Close()
	options.Progress = view.update
	begun := time.Now()
	result, err := a.dump(ctx, options)
	view.Close()
	if err != nil {
		return err
	}
	return a.tellDump(reportOfDump(options.PID, result, time.Since(begun)))
}

// tellDump shows the result of a dump or pre-dump.
func (a *app) tellDump(report dumpReport) error {
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	if !a.quiet {
		for _, note := range report.Notes {
			fmt.Fprintln(a.err, "note: "+note)
		}
		fmt.Fprintln(a.results, report.sentence())
	}
	return nil
}

// dumpReport is the result of a dump, for programs.
type dumpReport struct {
	ID             string        `json:"id"`
	Name           string        `json:"name"`
	Dir            string        `json:"dir,omitempty"` // absent when it went to standard output
	PID            int           `json:"pid"`
	Command        string        `json:"command"`
	After          stasis.After  `json:"after"`
	Engine         string        `json:"engine"`
	Compression    string        `json:"compression"`
	Streams        int           `json:"streams"`
	Ratio          float64       `json:"ratio"` // stored bytes for each byte of memory and state
	TookUS         int64         `json:"took_us"`
	BytesPerSecond int64         `json:"bytes_per_second"` // of memory
	Parent         string        `json:"parent,omitempty"`
	Kind           string        `json:"kind"`
	Notes          []string      `json:"notes,omitempty"`
	Freed          int64         `json:"bytes_freed,omitempty"` // bytes of disk that --auto-dedup gave back
	GivenUp        []string      `json:"given_up,omitempty"`    // folders of checkpoints that can't be restored any more by it
	Figures        image.Figures `json:"figures"`
}

func reportOfDump(pid int, result *stasis.DumpResult, took time.Duration) dumpReport {
	m := result.Manifest
	r := dumpReport{
		ID: m.ID, Name: m.Name, PID: pid, Command: commandOf(m), After: result.After, Engine: m.Engine, Compression: m.Codec,
		Streams: len(m.Shards), TookUS: took.Microseconds(), BytesPerSecond: perSecond(m.Figures.BytesMemory, took), Figures: m.Figures,
		Parent: m.Parent, Kind: m.Kind, Notes: result.Notes, Freed: result.Freed, GivenUp: result.GivenUp,
	}
	if result.Dir != "" {
		r.Dir = result.Dir
		if abs, err := filepath.Abs(result.Dir); err == nil {
			r.Dir = abs
		}
	}
	if whole := m.Figures.BytesMemory + m.Figures.BytesFiles; whole > 0 {
		r.Ratio = float64(m.Figures.BytesStored) / float64(whole)
	}
	return r
}

// commandOf is the command of the root of a tree.
func commandOf(m *stasis.Manifest) string {
	for _, p := range m.Processes {
		if p.PID == m.RootPID {
			return p.Comm
		}
	}
	return "process"
}

// sentence says it all in one line.
func (r *dumpReport) sentence() string {
	where := r.Dir
	if where == "" {
		where = "standard output"
	}
	after := map[stasis.After]string{stasis.AfterKill: "it was killed", stasis.AfterRun: "it runs on", stasis.AfterStop: "it is stopped"}[r.After]
	g := r.Figures
	if r.Kind == image.KindPreDump {
		return fmt.Sprintf("copied the memory of %s (%d) to %s: %s of memory in %s (%s), %s, %s, in %s (%s); it runs on, and its writes are tracked",
			printable(r.Command), r.PID, where, inBytes(g.BytesMemory), inBytes(g.BytesStored), r.Compression,
			plural(r.Streams, "stream"), plural(len(g.Rounds), "round"), span(micros(r.TookUS)), rate(g.BytesMemory, micros(r.TookUS)))
	}
	return fmt.Sprintf("dumped %s (%d) to %s: paused for %s; %s of memory and %s of state in %s (%s, %s), %s, %s, in %s (%s); %s",
		printable(r.Command), r.PID, where, span(micros(g.PauseUS)),
		inBytes(g.BytesMemory), inBytes(g.BytesFiles), inBytes(g.BytesStored), percent(g.BytesStored, g.BytesMemory+g.BytesFiles), r.Compression,
		plural(r.Streams, "stream"), plural(len(g.Rounds), "round"), span(micros(r.TookUS)), rate(g.BytesMemory, micros(r.TookUS)), after+r.deduplicated())
}

// deduplicated tells what --auto-dedup did.
func (r *dumpReport) deduplicated() string {
	if r.Freed == 0 && len(r.GivenUp) == 0 {
		return ""
	}
	text := "; " + inBytes(r.Freed) + " of ancestors given back"
	if len(r.GivenUp) > 0 {
		text += ", and " + users(r.GivenUp) + " can't be restored any more"
	}
	return text
}
