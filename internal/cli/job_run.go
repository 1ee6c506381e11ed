package cli

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/durationpb"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/client"
	"stasis/internal/codec"
	"stasis/internal/image"
)

// jobFlags are the flags that say what a job is.
type jobFlags struct {
	name         string
	every        time.Duration
	cron         string
	keep         v1.Retention
	restart      string
	maxRetries   int32
	restartDelay time.Duration
	fromScratch  bool
	withFiles    []string
	streams      int32
	compression  string
	level        int32
	nice         int32
	bandwidth    int64
	maxChain     int32
	criu         stasis.CRIUOptions
	labels       map[string]string
	given        func(string) bool
}

var restartPolicies = map[string]v1.RestartPolicy{
	"no": v1.RestartPolicy_RESTART_POLICY_NO, "on-failure": v1.RestartPolicy_RESTART_POLICY_ON_FAILURE, "always": v1.RestartPolicy_RESTART_POLICY_ALWAYS,
}

// add gives a command the flags.
func (f *jobFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.name, "name", "", "`NAME` of the job (default: the command's)")
	f.addChangeable(cmd, "default: as configured", " (default no)")
	f.addSettings(cmd)
}

// addChangeable gives a command the flags for what can be changed of a job. unset says what holds where a number is 0, and restart
// where that flag is not given.
func (f *jobFlags) addChangeable(cmd *cobra.Command, unset, restart string) {
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.DurationVar(&f.every, "every", 0, "make a checkpoint every `TIME`, such as 5m")
	flags.StringVar(&f.cron, "cron", "", "make checkpoints at the times of a cron `LINE`, such as \"*/5 * * * *\" or @hourly")
	flags.Int32Var(&f.keep.KeepLast, "keep-last", 0, "keep the newest `N` checkpoints ("+unset+", else all)")
	flags.Int32Var(&f.keep.KeepHourly, "keep-hourly", 0, "keep the newest of each of the last `N` hours that have one")
	flags.Int32Var(&f.keep.KeepDaily, "keep-daily", 0, "keep the newest of each of the last `N` days that have one")
	flags.Int32Var(&f.keep.KeepWeekly, "keep-weekly", 0, "keep the newest of each of the last `N` weeks that have one")
	flags.Int32Var(&f.keep.KeepMonthly, "keep-monthly", 0, "keep the newest of each of the last `N` months that have one")
	flags.Var(&size{most: math.MaxInt64, into: func(n int64) { f.keep.MaxBytes = n }}, "keep-bytes", "delete the oldest checkpoints until all take at most this `SIZE`")
	flags.Var(oneOf{&f.restart, []string{"no", "on-failure", "always"}}, "restart", "`WHEN` the job is brought back from its newest good checkpoint: no, on-failure or always"+restart)
	flags.Int32Var(&f.maxRetries, "max-retries", 0, "try at most `N` times in a row to bring it back ("+unset+")")
	flags.DurationVar(&f.restartDelay, "restart-delay", 0, "wait for this `TIME` before the second attempt in a row; it doubles with each ("+unset+")")
	flags.BoolVar(&f.fromScratch, "from-scratch", false, "start it anew where none of its checkpoints is good")
	must(cmd.RegisterFlagCompletionFunc("restart", cobra.FixedCompletions([]string{"no", "on-failure", "always"}, cobra.ShellCompDirectiveNoFileComp)))
}

// addSettings gives a command the flags for how a job is dumped, which stay as they are.
func (f *jobFlags) addSettings(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.withFiles, "with-files", nil, "keep the file or folder `PATH` with each checkpoint, and put it back on a restore; may be repeated")
	flags.Int32Var(&f.streams, "stream", 0, "write `N` files in parallel (default: as configured, else one for each CPU)")
	flags.Var(oneOf{&f.compression, codec.Names()}, "compression", "`CODEC` of checkpoints: none, lz4, zstd, gzip or zlib (default: as configured)")
	flags.Int32Var(&f.level, "level", 0, "`LEVEL` of the codec; 0 is its default")
	flags.Int32Var(&f.nice, "nice", 0, "how much less `PRIORITY` a checkpoint has than other programs, 0 to 19 (default: as configured)")
	flags.Var(&size{most: math.MaxInt64, into: func(n int64) { f.bandwidth = n }}, "bandwidth", "write at most this `SIZE` per second (default: as configured)")
	flags.Int32Var(&f.maxChain, "max-chain", 0, "begin a new chain after `N` checkpoints (default: as configured)")
	flags.StringToStringVar(&f.labels, "label", nil, "a `KEY=VALUE` for people and programs; may be repeated")
	flags.Lookup("label").DefValue = "" // and not "[]"
	addCRIUFlags(cmd, "dump", &f.criu)
	must(cmd.MarkFlagFilename("with-files"))
	must(cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions(codec.Names(), cobra.ShellCompDirectiveNoFileComp)))
}

// spec turns the flags into what the API takes.
func (f *jobFlags) spec() (*v1.JobSpec, error) {
	if f.every != 0 && f.cron != "" {
		return nil, badInput("--every and --cron both say when: choose one")
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	spec := &v1.JobSpec{
		Name: f.name, Retention: &f.keep, MaxChain: f.maxChain, Labels: f.labels,
		Restart: &v1.Restart{Policy: restartPolicies[f.restart], MaxRetries: f.maxRetries, FromScratch: f.fromScratch},
		Settings: &v1.DumpSettings{
			Compression: f.compression, Level: f.level, Criu: criuMessage(&f.criu),
		},
	}
	if f.restartDelay != 0 {
		spec.Restart.Delay = durationpb.New(f.restartDelay)
	}
	for name, field := range map[string]**int32{"stream": &spec.Settings.Streams, "nice": &spec.Settings.Nice} {
		if f.given(name) {
			*field = map[string]*int32{"stream": &f.streams, "nice": &f.nice}[name]
		}
	}
	if f.given("bandwidth") {
		spec.Settings.Bandwidth = &f.bandwidth
	}
	switch {
	case f.cron != "":
		spec.Schedule = &v1.Schedule{When: &v1.Schedule_Cron{Cron: f.cron}}
	case f.given("every"):
		spec.Schedule = &v1.Schedule{When: &v1.Schedule_Every{Every: durationpb.New(f.every)}}
	}
	for _, path := range f.withFiles {
		absolute, err := filepath.Abs(path)
		if err != nil {
			return nil, badInput("--with-files %s: %w", path, err)
		}
		spec.WithFiles = append(spec.WithFiles, absolute)
	}
	return spec, nil
}

// check refuses numbers that would mean something else: where a flag is left out, what is configured holds.
func (f *jobFlags) check() error {
	for _, n := range []struct {
		flag        string
		value       int64
		least, most int64
	}{
		{"keep-last", int64(f.keep.KeepLast), 1, math.MaxInt32}, {"keep-hourly", int64(f.keep.KeepHourly), 1, math.MaxInt32},
		{"keep-daily", int64(f.keep.KeepDaily), 1, math.MaxInt32}, {"keep-weekly", int64(f.keep.KeepWeekly), 1, math.MaxInt32},
		{"keep-monthly", int64(f.keep.KeepMonthly), 1, math.MaxInt32}, {"max-retries", int64(f.maxRetries), 1, math.MaxInt32},
		{"stream", int64(f.streams), 1, image.MaxShards}, {"nice", int64(f.nice), 0, 19}, {"max-chain", int64(f.maxChain), 1, math.MaxInt32},
	} {
		switch {
		case !f.given(n.flag) || n.least <= n.value && n.value <= n.most:
		case n.most == math.MaxInt32:
			return badInput("--%s %d: it must be at least %d", n.flag, n.value, n.least)
		default:
			return badInput("--%s %d: it is a number from %d to %d", n.flag, n.value, n.least, n.most)
		}
	}
	for _, t := range []struct {
		flag  string
		value time.Duration
	}{{"every", f.every}, {"restart-delay", f.restartDelay}} {
		if f.given(t.flag) && t.value <= 0 {
			return badInput("--%s %v: it must be more than 0, such as 5s", t.flag, t.value)
		}
	}
	return nil
}

func criuMessage(o *stasis.CRIUOptions) *v1.CRIUOptions {
	return &v1.CRIUOptions{
		ShellJob: o.ShellJob, TcpEstablished: o.TCPEstablished, TcpClose: o.TCPClose, SkipInFlight: o.SkipInFlight, ExtUnixSk: o.ExtUnixSk,
		FileLocks: o.FileLocks, LinkRemap: o.LinkRemap, GhostLimit: o.GhostLimit, External: o.External, Root: o.Root, JoinNs: o.JoinNS,
		ManageCgroups: o.ManageCgroups, Timeout: o.Timeout, CpuCap: o.CPUCap, FileValidation: o.FileValidation, NetworkLock: o.NetworkLock,
		LogLevel: int32(o.LogLevel), Raw: o.Raw, //nolint:gosec // 0 to 4
	}
}

func (a *app) runCommand() *cobra.Command {
	f := &jobFlags{}
	var noTerminal, attach bool
	var env []string
	var dir string
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT…]",
		Short: "Run a command as a job that is checkpointed and brought back",
		Long: `Runs a command as a job: with a terminal and a log of its own, checkpointed on schedule (--every, --cron) as a chain in which each
checkpoint holds what has changed, and brought back from its newest good checkpoint after a crash of the job, of the daemon or of
the machine (--restart). It runs in this folder, with this environment, and goes on when this terminal is closed.

A job ends with the command: what is left of its processes then is ended too.`,
		Example: `  stasis run --every 5m --keep-last 5 --restart on-failure -- ./simulate --steps 1000000
  stasis run --name notebook --attach -- python3
  stasis logs -f simulate; stasis ps; stasis restore job simulate --at 12`,
		Args: someArgs("which command? Write stasis run -- COMMAND"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			spec, err := f.spec()
			if err != nil {
				return err
			}
			for _, variable := range env {
				if name, _, given := strings.Cut(variable, "="); !given || name == "" {
					return badInput("--env %q: write NAME=VALUE; the variables of this shell are the job's anyway", variable)
				}
			}
			if dir == "" {
				if dir, err = os.Getwd(); err != nil {
					return fmt.Errorf("find the folder to run in: %w: give one by --cwd", err)
				}
			}
			if spec.Directory, err = filepath.Abs(dir); err != nil {
				return badInput("--cwd %s: %w", dir, err)
			}
			spec.Command, spec.Environment, spec.NoTerminal = args, append(append([]string(nil), a.environ...), env...), noTerminal
			return a.runRun(cmd.Context(), spec, attach)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what comes after the command is the command's
	f.add(cmd)
	flags.StringVar(&dir, "cwd", "", "run in `DIR` (default: this folder)")
	flags.StringArrayVarP(&env, "env", "e", nil, "set `NAME=VALUE` in its environment; may be repeated")
	flags.BoolVar(&noTerminal, "no-terminal", false, "no terminal: standard input is empty, output goes to the log as it is")
	flags.BoolVarP(&attach, "attach", "a", false, "attach to it at once, as stasis attach does")
	must(cmd.MarkFlagDirname("cwd"))
	return cmd
}

func (a *app) runRun(ctx context.Context, spec *v1.JobSpec, attach bool) error {
	if cols, rows, err := term.GetSize(int(a.in.Fd())); err == nil {
		spec.TerminalSize = &v1.TerminalSize{Rows: uint32(rows), Columns: uint32(cols)} //nolint:gosec // small
	}
	return a.withDaemon(ctx, func(c *client.Client) error {
		response, err := c.Jobs.Run(ctx, connect.NewRequest(&v1.RunRequest{Spec: spec}))
		if err != nil {
			return err
		}
		j := response.Msg.GetJob()
		if attach {
			return a.attachTo(ctx, c, j.GetSpec().GetName(), false)
		}
		return a.tellJob(j, "job %s runs as process %d%s", j.GetSpec().GetName(), j.GetPid(), whenNext(j))
	})
}

func whenNext(j *v1.Job) string {
	if j.GetNextCheckpoint() == nil {
		return ", without a schedule: stasis dump job " + j.GetSpec().GetName() + " makes a checkpoint"
	}
	return ", first checkpoint at " + j.GetNextCheckpoint().AsTime().Local().Format(time.TimeOnly)
}

func (a *app) manageCommand() *cobra.Command {
	f := &jobFlags{}
	cmd := &cobra.Command{
		Use:   "manage PID",
		Short: "Take up a running process as a job",
		Long: `Takes up a running process and its descendants as a job: they are checkpointed and brought back as those of stasis run. Until it
is restored for the first time it stays where it is and keeps its terminal; what it prints then goes to the job's log.

It has to be the leader of its session: what a shell has started belongs to the shell's, start it by setsid or stasis run.`,
		Example:           "  stasis manage 4711 --name worker --every 10m --restart on-failure",
		Args:              oneArg("the process id"),
		ValidArgsFunction: completePID,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			pid, err := parsePID(args[0])
			if err != nil {
				return err
			}
			spec, err := f.spec()
			if err != nil {
				return err
			}
			return a.withDaemon(cmd.Context(), func(c *client.Client) error {
				response, err := c.Jobs.Manage(cmd.Context(), connect.NewRequest(&v1.ManageRequest{Pid: int32(pid), Spec: spec})) //nolint:gosec // a pid
				if err != nil {
					return err
				}
				j := response.Msg.GetJob()
				return a.tellJob(j, "process %d is job %s now%s", j.GetPid(), j.GetSpec().GetName(), whenNext(j))
			})
		},
	}
	f.add(cmd)
	return cmd
}
