package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
	"stasis/internal/health"
)

func (a *app) daemonCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Start, stop and look after the daemon",
		Long: `The daemon serves the API on a socket and looks after jobs. Commands that need it start it where none runs (as root); such a one
leaves when it has nothing to do.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().String(socketFlag, "", "use the daemon on the socket `PATH` (default: as configured)")
	must(cmd.MarkPersistentFlagFilename(socketFlag))
	cmd.AddCommand(a.daemonStartCommand(), a.daemonStopCommand(), a.daemonStatusCommand(), a.daemonCheckCommand(), a.daemonPageCommand())
	return cmd
}

const socketFlag = "socket"

// socketOf takes the socket from the flag, where it is given.
func (a *app) socketOf(cmd *cobra.Command) error {
	path, err := cmd.Flags().GetString(socketFlag)
	if err != nil || path == "" {
		return err
	}
	changed, err := a.config.With("daemon.socket", path, "--"+socketFlag)
	if err != nil {
		return badInput("%w", err)
	}
	a.config = changed
	return nil
}

// daemon connects to the daemon. Where none runs it starts one, if that makes sense for the command: one that changes or asks for
// something that only a daemon knows.
func (a *app) daemon(ctx context.Context, start bool) (*client.Client, error) {
	o := client.Options{Socket: a.config.Daemon.Socket, Interceptors: a.traces.Interceptors()}
	if start && os.Geteuid() == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program, to start a daemon: %w", err)
		}
		o.Start = append([]string{self, "daemon", "start", "--on-demand"}, a.sameSettings()...)
	}
	c, err := client.Connect(ctx, o)
	if errors.Is(err, client.ErrNoDaemon) {
		return nil, &inputError{err: err}
	}
	return c, err
}

// sameSettings are the flags that give another process the same settings.
func (a *app) sameSettings() []string {
	flags := []string{"--" + socketFlag, a.config.Daemon.Socket}
	if a.configPath != "" {
		flags = append(flags, "--config", a.configPath)
	}
	if a.criuPath != "" {
		flags = append(flags, "--criu", a.criuPath)
	}
	return flags
}

func (a *app) daemonStopCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "Stop the daemon; jobs run on",
		Long: `Stops the daemon: it answers no more calls, waits for those that are under way (daemon.stop_timeout), makes a last checkpoint of
each job where jobs.dump_on_stop says so, and ends. Jobs run on, and the next daemon takes them up again. Where systemd is shutting the
machine down they are ended with that checkpoint; after the next boot the daemon brings back those with a restart policy.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.socketOf(cmd); err != nil {
				return err
			}
			return a.runDaemonStop(cmd.Context())
		},
	}
}

func (a *app) runDaemonStop(ctx context.Context) error {
	c, err := a.daemon(ctx, false)
	if err != nil {
		return err
	}
	defer c.Close()
	status, err := c.System.Status(ctx, connect.NewRequest(&v1.StatusRequest{}))
	if err != nil {
		return client.Explain(err)
	}
	if _, err := c.System.Stop(ctx, connect.NewRequest(&v1.StopRequest{})); err != nil {
		return client.Explain(err)
	}
	pid := int(status.Msg.GetPid())
	if err := waitForEnd(ctx, pid); err != nil {
		return fmt.Errorf("the daemon (process %d) is stopping: %w", pid, err)
	}
	if a.output == outputJSON {
		return a.writeJSON(struct {
			PID     int  `json:"pid"`
			Stopped bool `json:"stopped"`
		}{pid, true})
	}
	if !a.quiet {
		fmt.Fprintf(a.out, "stopped the daemon (process %d)\n", pid)
	}
	return nil
}

func (a *app) daemonStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say whether the daemon runs, and what it does",
		Long:  "Says whether the daemon runs, and what it does. It exits with 1 if none runs, and starts none.",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.socketOf(cmd); err != nil {
				return err
			}
			return a.runDaemonStatus(cmd.Context())
		},
	}
}

// statusReport is the result for programs.
type statusReport struct {
	Running       bool      `json:"running"`
	PID           int       `json:"pid,omitempty"`
	Version       string    `json:"version,omitempty"`
	Started       time.Time `json:"started,omitzero"`
	OnDemand      bool      `json:"on_demand"`
	Addresses     []string  `json:"addresses,omitempty"`
	Dumps         int       `json:"dumps"`
	Restores      int       `json:"restores"`
	Checkpoints   int       `json:"checkpoints"`
	Jobs          int       `json:"jobs"`
	JobsRunning   int       `json:"jobs_running"`
	CheckpointDir string    `json:"checkpoint_dir,omitempty"`
}

func (a *app) runDaemonStatus(ctx context.Context) error {
	report, err := a.daemonStatus(ctx)
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		if err := a.writeJSON(report); err != nil {
			return err
		}
	} else {
		a.showStatus(report)
	}
	if !report.Running {
		return exitStatus(exitFailure)
	}
	return nil
}

func (a *app) daemonStatus(ctx context.Context) (*statusReport, error) {
	c, err := a.daemon(ctx, false)
	if errors.Is(err, client.ErrNoDaemon) {
		return new(statusReport), nil
	} else if err != nil {
		return nil, err
	}
	defer c.Close()
	status, err := c.System.Status(ctx, connect.NewRequest(&v1.StatusRequest{}))
	if err != nil {
		return nil, client.Explain(err)
	}
	version, err := c.System.Version(ctx, connect.NewRequest(&v1.VersionRequest{}))
	if err != nil {
		return nil, client.Explain(err)
	}
	s := status.Msg
	return &statusReport{
		Running: true, PID: int(s.GetPid()), Version: version.Msg.GetStasis(), Started: s.GetStarted().AsTime(), OnDemand: s.GetOnDemand(),
		Addresses: s.GetAddresses(), Dumps: int(s.GetDumps()), Restores: int(s.GetRestores()), Checkpoints: int(s.GetCheckpoints()),
		Jobs: int(s.GetJobs()), JobsRunning: int(s.GetJobsRunning()), CheckpointDir: s.GetCheckpointDir(),
	}, nil
}

func (a *app) showStatus(r *statusReport) {
	if !r.Running {
		fmt.Fprintf(a.out, "no daemon runs on %s\n", a.config.Daemon.Socket)
		return
	}
	kind := ""
	if r.OnDemand {
		kind = ", on demand"
	}
	fmt.Fprintf(a.out, "the daemon (process %d, stasis %s%s) runs since %s on %s\n",
		r.PID, r.Version, kind, r.Started.Local().Format(time.DateTime), strings.Join(r.Addresses, ", "))
	fmt.Fprintf(a.out, "%s in %s; %s, of which %d run; %s and %s under way\n", plural(r.Checkpoints, "checkpoint"), r.CheckpointDir,
		plural(r.Jobs, "job"), r.JobsRunning, plural(r.Dumps, "dump"), plural(r.Restores, "restore"))
}

func (a *app) daemonCheckCommand() *cobra.Command {
	var full bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether the daemon and its machine are fit, and what to do if not",
		Long: `Looks at every part that the daemon needs: this machine, CRIU, the folder of checkpoints and its space, the jobs. With --full the
daemon really dumps and restores a small process of its own.

It exits with 1 if something fails.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.socketOf(cmd); err != nil {
				return err
			}
			return a.runDaemonCheck(cmd.Context(), full)
		},
	}
	cmd.Flags().BoolVar(&full, "full", false, "really dump and restore a small process")
	return cmd
}

func (a *app) runDaemonCheck(ctx context.Context, full bool) error {
	c, err := a.daemon(ctx, true)
	if err != nil {
		return err
	}
	defer c.Close()
	response, err := c.System.Check(ctx, connect.NewRequest(&v1.CheckRequest{Full: full}))
	if err != nil {
		return client.Explain(err)
	}
	statuses := map[v1.CheckStatus]health.Status{
		v1.CheckStatus_CHECK_STATUS_OK: health.OK, v1.CheckStatus_CHECK_STATUS_WARN: health.Warn, v1.CheckStatus_CHECK_STATUS_FAIL: health.Fail,
	}
	var results []health.Result
	for _, r := range response.Msg.GetResults() {
		results = append(results, health.Result{Name: r.GetName(), Status: statuses[r.GetStatus()], Detail: r.GetDetail(), Remedy: r.GetRemedy()})
	}
	return a.tellCheck(&checkReport{Results: results})
}
