package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
)

func (a *app) psCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ps",
		Short: "List jobs",
		Long: `Lists the jobs, the newest first: what they do, their newest checkpoint and how long they stood still for it, what all of their
checkpoints take, and when the next one is due.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(cmd.Context(), func(c *client.Client) error {
				list, err := allJobs(cmd.Context(), c, a.output != outputJSON)
				if err != nil {
					return err
				}
				return a.showJobs(list)
			})
		},
	}
}

func (a *app) showJobs(list []*v1.Job) error {
	if a.output == outputJSON {
		all := make([]json.RawMessage, 0, len(list))
		for _, j := range list {
			text, err := asJSON(j)
			if err != nil {
				return err
			}
			all = append(all, text)
		}
		return a.writeJSON(all)
	}
	if len(list) == 0 && !a.quiet {
		fmt.Fprintln(a.out, "no jobs: stasis run starts one")
		return nil
	}
	var rows [][]string
	for _, j := range list {
		pid, last, pause, next := "–", "–", "–", "–"
		if j.GetPid() != 0 {
			pid = fmt.Sprint(j.GetPid())
		}
		if cp := j.GetLastCheckpoint(); cp != nil {
			last, pause = ago(cp.GetCreated().AsTime()), span(cp.GetFigures().GetPause().AsDuration())
		}
		if j.GetNextCheckpoint() != nil {
			next = ago(j.GetNextCheckpoint().AsTime())
		}
		rows = append(rows, []string{
			j.GetSpec().GetName(), pid, jobState(j), fmt.Sprint(j.GetCheckpoints()), last, pause, inBytes(j.GetCheckpointBytes()), next,
			shorten(strings.Join(j.GetSpec().GetCommand(), " "), 40),
		})
	}
	if err := table(a.out, []string{"NAME", "PID", "STATE", "CHECKPOINTS", "LAST", "PAUSE", "SIZE", "NEXT", "COMMAND"}, rows); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	for _, j := range list {
		if j.GetMessage() != "" && !a.quiet {
			fmt.Fprintf(a.err, "%s: %s\n", j.GetSpec().GetName(), printable(j.GetMessage()))
		}
	}
	return nil
}

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var tail int32
	cmd := &cobra.Command{
		Use:               "logs JOB",
		Short:             "Show what a job has printed",
		Long:              "Shows what a job has printed, in all of its runs, as far back as it is kept; with --follow also what it prints from now on, until it is over.",
		Example:           "  stasis logs simulate -n 20 -f",
		Args:              oneJob,
		ValidArgsFunction: a.completeJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &v1.LogsRequest{Job: args[0], Follow: follow}
			if cmd.Flags().Changed("tail") {
				if tail < 0 {
					return badInput("--tail %d: it is a number of lines", tail)
				}
				request.Tail = &tail
			}
			return a.withDaemon(cmd.Context(), func(c *client.Client) error { return a.runLogs(cmd.Context(), c, request) })
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what it prints")
	cmd.Flags().Int32VarP(&tail, "tail", "n", 0, "only the last `N` lines")
	return cmd
}

func (a *app) runLogs(ctx context.Context, c *client.Client, request *v1.LogsRequest) error {
	stream, err := c.Jobs.Logs(ctx, connect.NewRequest(request))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if _, err := a.out.Write(stream.Msg().GetData()); err != nil {
			return fmt.Errorf("write the log: %w", err)
		}
	}
	return a.endOfStream(ctx, stream.Err())
}

// endOfStream is the error of a stream that the user may have ended, which is what it is for.
func (a *app) endOfStream(ctx context.Context, err error) error {
	if by := (*interruption)(nil); errors.As(context.Cause(ctx), &by) {
		return exitStatus(exitSignal + int(by.signal))
	}
	return err
}

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "events [JOB]",
		Short: "Show what has happened to jobs",
		Long: `Shows what has happened to jobs: starts, checkpoints, skipped ones and failed ones, ends, restores. With --follow it shows what
happens from now on, and with --since also what happened before. As JSON each event is one line.`,
		Example:           "  stasis events --since 1h\n  stasis events -f -o json",
		Args:              atMostOneArg,
		ValidArgsFunction: a.completeJob,
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &v1.EventsRequest{Follow: follow}
			if len(args) > 0 {
				request.Job = args[0]
			}
			if cmd.Flags().Changed("since") {
				if since <= 0 {
					return badInput("--since %v: it must be more than 0, such as 1h", since)
				}
				request.Since = timestamppb.New(time.Now().Add(-since))
			}
			return a.withDaemon(cmd.Context(), func(c *client.Client) error { return a.runEvents(cmd.Context(), c, request) })
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens")
	cmd.Flags().DurationVar(&since, "since", 0, "only what happened in the last `TIME`")
	return cmd
}

func (a *app) runEvents(ctx context.Context, c *client.Client, request *v1.EventsRequest) error {
	stream, err := c.Jobs.Events(ctx, connect.NewRequest(request))
	if err != nil {
		return err
	}
	defer stream.Close()
	told := false
	for stream.Receive() {
		told = true
		e := stream.Msg().GetEvent()
		if a.output == outputJSON {
			if err := a.writeLine(e); err != nil {
				return err
			}
			continue
		}
		job := e.GetJob()
		if job == "" {
			job = "–"
		}
		if _, err := fmt.Fprintf(a.out, "%s  %s  %s\n", e.GetTime().AsTime().Local().Format("2006-01-02 15:04:05.000"), printable(job), printable(e.GetMessage())); err != nil {
			return fmt.Errorf("write the events: %w", err)
		}
	}
	if err := a.endOfStream(ctx, stream.Err()); err != nil {
		return err
	}
	if job := request.GetJob(); !told && job != "" && request.GetSince() == nil {
		return badInput("there is no job %s, and none of that name has left an event: \"stasis ps\" lists the jobs", job)
	}
	return nil
}
