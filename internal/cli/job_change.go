package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"stasis"
	v1 "stasis/api/stasis/v1"
	"stasis/client"
)

func (a *app) killCommand() *cobra.Command {
	var name string
	var all bool
	cmd := &cobra.Command{
		Use:   "kill JOB…",
		Short: "End jobs, or send them a signal",
		Long: `Sends a signal to jobs. One that ends jobs (TERM, KILL, INT, QUIT) is waited for, and the job is not brought back; it is an error
if the job does not end within ten seconds. KILL goes to all of its processes.` + severalJobs,
		Example:           "  stasis kill simulate\n  stasis kill simulate render --signal USR1",
		Args:              someJobs,
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			sig, err := signalOf(name)
			if err != nil {
				return err
			}
			return eachJob(a, cmd.Context(), args, func(c *client.Client, job string) (*v1.Job, error) {
				response, err := c.Jobs.Kill(cmd.Context(), connect.NewRequest(&v1.KillRequest{Job: job, Signal: int32(sig), All: all}))
				if err != nil {
					return nil, err
				}
				return response.Msg.GetJob(), nil
			}, func(j *v1.Job) { fmt.Fprintf(a.out, "job %s is %s\n", j.GetSpec().GetName(), jobState(j)) })
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "TERM", "`SIGNAL` to send, a name or number")
	cmd.Flags().BoolVar(&all, "all", false, "send it to all processes of the job, not to the first alone")
	return cmd
}

func signalOf(name string) (unix.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if sig := unix.SignalNum(upper); sig != 0 {
		return sig, nil
	}
	return 0, badInput("--signal %q: it is a name such as TERM or USR1, or a number", name)
}

// rmJobCommand removes a job; "rm" itself removes checkpoints.
func (a *app) rmJobCommand() *cobra.Command {
	var force, keep bool
	cmd := &cobra.Command{
		Use:   "job JOB…",
		Short: "Remove jobs that have ended, with their logs and checkpoints",
		Long: `Removes jobs that have ended, with their logs and checkpoints. With --force one that runs is killed first. With --keep-checkpoints
they stay in their folder, and can be restored as those of any process.` + severalJobs,
		Example:           "  stasis rm job simulate\n  stasis rm job simulate render --force",
		Args:              someJobs,
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return eachJob(a, cmd.Context(), args, func(c *client.Client, job string) (*v1.Job, error) {
				response, err := c.Jobs.Remove(cmd.Context(), connect.NewRequest(&v1.RemoveJobRequest{Job: job, Checkpoints: !keep, Force: force}))
				if err != nil {
					return nil, err
				}
				return response.Msg.GetJob(), nil
			}, func(j *v1.Job) { fmt.Fprintf(a.out, "removed job %s\n", j.GetSpec().GetName()) })
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "kill it first if it runs")
	cmd.Flags().BoolVar(&keep, "keep-checkpoints", false, "leave its checkpoints where they are")
	return cmd
}

func (a *app) dumpJobCommand() *cobra.Command {
	var kill, stop, full bool
	cmd := &cobra.Command{
		Use:   "job JOB…",
		Short: "Make checkpoints of jobs now",
		Long: `Makes a checkpoint of a job now, which runs on unless told otherwise. It builds on the job's newest checkpoint, and so holds only what
has changed since, unless --full says otherwise.` + severalJobs + ` "stasis evacuate" dumps many at once.`,
		Example:           "  stasis dump job simulate",
		Args:              someJobs,
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			after := v1.After_AFTER_RUN
			switch {
			case kill && stop:
				return badInput("--kill and --leave-stopped both say what becomes of the job: choose one")
			case kill:
				after = v1.After_AFTER_KILL
			case stop:
				after = v1.After_AFTER_STOP
			}
			return eachJob(a, cmd.Context(), args, func(c *client.Client, job string) (*v1.DumpResult, error) {
				return a.dumpJob(cmd.Context(), c, &v1.DumpJobRequest{Job: job, Full: full, After: after})
			}, a.tellDumped)
		},
	}
	cmd.Flags().BoolVar(&kill, "kill", false, "end it with the checkpoint; stasis restore job brings it back")
	cmd.Flags().BoolVarP(&stop, "leave-stopped", "s", false, "leave it stopped, as by SIGSTOP")
	cmd.Flags().BoolVar(&full, "full", false, "build on no other checkpoint")
	return cmd
}

func (a *app) dumpJob(ctx context.Context, c *client.Client, request *v1.DumpJobRequest) (*v1.DumpResult, error) {
	stream, err := c.Jobs.Dump(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	view := a.progress()
	defer view.Close()
	var result *v1.DumpResult
	for stream.Receive() {
		if p := stream.Msg().GetProgress(); p != nil {
			view.update(stasis.Progress{Step: stasis.Step(p.GetStep()), Round: int(p.GetRound()), Done: p.GetDoneBytes(), Total: p.GetTotalBytes()})
		}
		if r := stream.Msg().GetResult(); r != nil {
			result = r
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if result == nil {
		return nil, errors.New("the daemon did not say how the dump went")
	}
	return result, nil
}

func (a *app) tellDumped(result *v1.DumpResult) {
	cp := result.GetCheckpoint()
	fmt.Fprintf(a.out, "%s: %s of memory in %s; the job stood still for %s; %s stored in %s\n", cp.GetName(), inBytes(cp.GetFigures().GetBytesMemory()),
		span(result.GetTook().AsDuration()), span(cp.GetFigures().GetPause().AsDuration()), inBytes(cp.GetBytes()), cp.GetDir())
	for _, note := range result.GetNotes() {
		fmt.Fprintf(a.err, "note: %s\n", printable(note))
	}
}

func (a *app) restoreJobCommand() *cobra.Command {
	var at string
	var force bool
	cmd := &cobra.Command{
		Use:   "job JOB…",
		Short: "Bring jobs back from one of their checkpoints",
		Long: `Brings a job back from its newest good checkpoint, or from a given one (--at): its number, its name (JOB-NUMBER) or the beginning of
its id. A job that runs is ended for it, once the checkpoint has been read and found good. Its log goes on, and whoever is attached
stays attached.` + severalJobs,
		Example:           "  stasis restore job simulate\n  stasis restore job simulate --at 12",
		Args:              someJobs,
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if at != "" && len(args) > 1 {
				return badInput("--at %s: it is a checkpoint of one job, and %d are named", at, len(args))
			}
			return eachJob(a, cmd.Context(), args, func(c *client.Client, job string) (*v1.RestoreResult, error) {
				result, err := restoreJob(cmd.Context(), c, &v1.RestoreJobRequest{Job: job, At: at, Force: force})
				if err == nil && a.output != outputJSON {
					a.tellRestored(job, result)
				}
				return result, err
			}, func(*v1.RestoreResult) {})
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "`CHECKPOINT` to go back to: number, name or id (default: the newest that is good)")
	cmd.Flags().BoolVar(&force, "force", false, "restore in spite of a conflict that might not matter")
	return cmd
}

func restoreJob(ctx context.Context, c *client.Client, request *v1.RestoreJobRequest) (*v1.RestoreResult, error) {
	stream, err := c.Jobs.Restore(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var result *v1.RestoreResult
	for stream.Receive() {
		if r := stream.Msg().GetResult(); r != nil {
			result = r
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if result == nil {
		return nil, errors.New("the daemon did not say how the restore went")
	}
	return result, nil
}

func (a *app) tellRestored(job string, result *v1.RestoreResult) {
	for _, warning := range result.GetWarnings() {
		fmt.Fprintf(a.err, "warning: %s\n", printable(warning))
	}
	if a.quiet {
		return
	}
	if cp := result.GetCheckpoint(); cp != nil {
		fmt.Fprintf(a.out, "job %s is back from %s, of %s, as process %d, in %s\n", job, cp.GetName(),
			cp.GetCreated().AsTime().Local().Format(time.DateTime), result.GetPid(), span(result.GetToResume().AsDuration()))
		return
	}
	fmt.Fprintf(a.out, "job %s had no checkpoint and was started anew, as process %d\n", job, result.GetPid())
}

func (a *app) evacuateCommand() *cobra.Command {
	var deadline time.Duration
	var kill bool
	cmd := &cobra.Command{
		Use:   "evacuate --deadline TIME [JOB…]",
		Short: "Make all jobs safe in time",
		Long: `Makes a checkpoint of every job on the machine, or of those that are named, within a deadline, several at a time, and says which is
safe and which is not. Jobs run on; with --kill each is ended with its checkpoint, so that nothing that comes after is lost.

It exits with 1 if one of them is not safe.`,
		Example:           "  stasis evacuate --deadline 30s --kill",
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if deadline <= 0 {
				return badInput("within what time has it to be done? Give --deadline, such as 30s")
			}
			request := &v1.EvacuateRequest{Deadline: durationpb.New(deadline), Jobs: args, After: v1.After_AFTER_RUN}
			if kill {
				request.After = v1.After_AFTER_KILL
			}
			return a.withDaemon(cmd.Context(), func(c *client.Client) error { return a.runEvacuate(cmd.Context(), c, request) })
		},
	}
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "within this `TIME`")
	cmd.Flags().BoolVar(&kill, "kill", false, "end each job with its checkpoint; stasis restore job brings it back")
	return cmd
}

func (a *app) runEvacuate(ctx context.Context, c *client.Client, request *v1.EvacuateRequest) error {
	stream, err := c.Jobs.Evacuate(ctx, connect.NewRequest(request))
	if err != nil {
		return err
	}
	defer stream.Close()
	outcomes := []json.RawMessage{}
	var summary *v1.EvacuateSummary
	for stream.Receive() {
		o := stream.Msg().GetOutcome()
		if s := stream.Msg().GetSummary(); s != nil {
			summary = s
		}
		switch {
		case o == nil:
		case a.output == outputJSON:
			text, err := asJSON(o)
			if err != nil {
				return err
			}
			outcomes = append(outcomes, text)
		case o.GetSafe():
			fmt.Fprintf(a.out, "safe      %s  %s\n", o.GetJob().GetSpec().GetName(), o.GetCheckpoint().GetName())
		default:
			fmt.Fprintf(a.out, "NOT SAFE  %s  %s%s\n", o.GetJob().GetSpec().GetName(), printable(o.GetError()), newestIs(o.GetCheckpoint()))
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if a.output == outputJSON {
		if err := a.writeJSON(struct {
			Safe     int32             `json:"safe"`
			Unsafe   int32             `json:"unsafe"`
			Outcomes []json.RawMessage `json:"outcomes"`
		}{summary.GetSafe(), summary.GetUnsafe(), outcomes}); err != nil {
			return err
		}
	} else if !a.quiet && len(request.GetJobs()) == 0 && summary.GetSafe()+summary.GetUnsafe() == 0 {
		fmt.Fprintln(a.out, "no job runs: there is nothing to make safe")
	} else if !a.quiet {
		fmt.Fprintf(a.out, "%d safe, %d not, after %s\n", summary.GetSafe(), summary.GetUnsafe(), span(summary.GetTook().AsDuration()))
	}
	if summary == nil || summary.GetUnsafe() > 0 {
		return exitStatus(exitFailure)
	}
	return nil
}

func newestIs(cp *v1.Checkpoint) string {
	if cp == nil {
		return "; it has no checkpoint at all"
	}
	return fmt.Sprintf("; its newest checkpoint %s is of %s", cp.GetName(), ago(cp.GetCreated().AsTime()))
}
