// Package cli is the command line of Stasis: it reads arguments and configuration, calls the library, and shows what came of it.
//
// Words: people get a sentence or a table, and a progress bar on a terminal; programs get one JSON document (--output json),
// which is the result or the error. The document goes to standard output, except where that carries a checkpoint. Whatever is
// not a result (progress, messages, the summary of a restore whose program has standard output) goes to standard error.
//
// [Run] is called once per process: it handles the process' signals.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/trace"

	"stasis"
	"stasis/internal/config"
	"stasis/internal/health"
	"stasis/internal/tracing"
)

// app is what the commands share.
type app struct {
	in       *os.File
	out, err io.Writer
	results  io.Writer // where results go: out, or err where out carries a checkpoint
	environ  []string
	signals  *signals

	// of the library, so that tests can do without root
	dump    func(context.Context, stasis.DumpOptions) (*stasis.DumpResult, error)
	preDump func(context.Context, stasis.PreDumpOptions) (*stasis.DumpResult, error)
	restore func(context.Context, stasis.RestoreOptions) (*stasis.RestoreResult, error)
	machine func(ctx context.Context, criuPath string) []health.Result
	process func(ctx context.Context, pid int) []health.Result

	// global flags
	configPath string
	output     outputForm
	quiet      bool
	criuPath   string

	config *config.Config   // there when a command runs
	traces *tracing.Tracing // likewise; nil: none are sent
	span   trace.Span       // likewise; of the command
}

// Run runs one command with the arguments that follow the program's name, and returns the exit code.
func Run(args []string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	a := &app{
		in: os.Stdin, out: os.Stdout, err: os.Stderr, environ: os.Environ(),
		signals: listen(cancel),
		dump:    stasis.Dump, preDump: stasis.PreDump, restore: stasis.Restore,
		machine: health.Machine, process: health.Process,
	}
	defer a.signals.stop()
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	if a.results = a.out; dumpsToStandardOutput(args) {
		a.results = a.err
	}
	root := a.root()
	root.SetArgs(criuVerbosity(args))
	err := root.ExecuteContext(ctx)
	a.endTrace(err)
	if err == nil {
		return exitOK
	}
	if by := (*interruption)(nil); errors.As(context.Cause(ctx), &by) {
		err = errors.Join(err, by)
	}
	if a.output == "" { // parsing failed before the flag was reached
		a.output = outputAsked(args)
	}
	return a.report(err)
}

// root makes the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "stasis",
		Short: "Checkpoint and restore running processes",
		Long: `Stasis saves running processes to a checkpoint while they work, and brings them back later or elsewhere.

A process stands still for some milliseconds while it is dumped, whatever its size. Dumps and restores need root, Linux 6.7 or
newer for the short pause, and CRIU 4.2 or newer; "stasis check" says whether this machine has it all.

` + exitCodeHelp() + `
` + configHelp(),
		Example: `  stasis dump process 4711 --name before-update --leave-running
  stasis restore process --path before-update
  stasis dump process 4711 --dir - | ssh host stasis restore process --path -`,
		Version:           stasis.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              noArgs,
		PersistentPreRunE: a.prepare,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("stasis {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)

	flags := root.PersistentFlags()
	flags.StringVar(&a.configPath, "config", "", "read the configuration from `FILE` (default "+config.DefaultPath+")")
	flags.VarP(&a.output, "output", "o", "what to print: text for people, json for programs")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no summary")
	flags.StringVar(&a.criuPath, "criu", "", "use the CRIU at `PATH` (default: the first on PATH that is new enough, then the private one)")
	must(root.MarkPersistentFlagFilename("config", "yaml", "yml", "json"))
	must(root.MarkPersistentFlagFilename("criu"))
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{string(outputText), string(outputJSON)}, cobra.ShellCompDirectiveNoFileComp)))

	for _, g := range a.groups() {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, command := range g.commands {
			command.GroupID = g.id
			root.AddCommand(command)
		}
	}
	root.SetHelpCommandGroupID(stasisGroup)
	root.SetCompletionCommandGroupID(stasisGroup)
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "help" {
			cmd.Args = helpTopic
		}
	}
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args = noArgs // and not help for a shell that it doesn't know
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	return root
}

// helpTopic refuses what is no command; the help of all commands would be shown without a word otherwise.
func helpTopic(cmd *cobra.Command, args []string) error {
	at := cmd.Root()
	for _, name := range args {
		next := slices.IndexFunc(at.Commands(), func(c *cobra.Command) bool { return c.Name() == name || c.HasAlias(name) })
		if next < 0 {
			return noArgs(at, []string{name})
		}
		at = at.Commands()[next]
	}
	return nil
}

// prepare runs before every command.
func (a *app) prepare(cmd *cobra.Command, _ []string) error {
	if a.output == "" {
		a.output = outputText
	}
	if err := noEmptyFlags(cmd); err != nil {
		return err
	}
	if isCompletion(cmd) {
		a.config = config.Default() // a shell needs its completions whatever the configuration is like
		if c, err := config.Load(a.configPath, a.environ); err == nil {
			a.config = c
		}
		return nil
	}
	c, err := config.Load(a.configPath, a.environ)
	if err != nil {
		return &inputError{err: err}
	}
	a.config = c
	a.beginTrace(cmd)
	return nil
}

func isCompletion(cmd *cobra.Command) bool {
	for ; cmd != nil; cmd = cmd.Parent() {
		if slices.Contains([]string{"completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd}, cmd.Name()) {
			return true
		}
	}
	return false
}

func configHelp() string {
	var b strings.Builder
	fmt.Fprintf(&b, "The configuration is YAML or JSON in %s, or in the file that --config or %s names. A variable\n",
		config.DefaultPath, config.PathVariable)
	b.WriteString("such as STASIS_CHECKPOINT_STREAM goes before the file, and a flag before both. \"stasis config show\" lists all settings.\n")
	return b.String()
}

// must is for errors that only a mistake in this package can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
