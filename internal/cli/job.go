package cli

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
)

// withDaemon does something with the daemon, which is started where none runs.
func (a *app) withDaemon(ctx context.Context, work func(*client.Client) error) error {
	c, err := a.daemon(ctx, true)
	if err != nil {
		return err
	}
	defer c.Close()
	return client.Explain(work(c))
}

// writeMessage writes a message of the API for programs.
func (a *app) writeMessage(m proto.Message) error {
	text, err := asJSON(m)
	if err != nil {
		return err
	}
	return a.writeJSON(text)
}

// writeLine writes a message of the API as one line, where there are many.
func (a *app) writeLine(m proto.Message) error {
	text, err := asJSON(m)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(a.results, "%s\n", text); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// tellJob writes a job, or a sentence about it.
func (a *app) tellJob(j *v1.Job, format string, args ...any) error {
	if a.output == outputJSON {
		return a.writeMessage(j)
	}
	if !a.quiet {
		fmt.Fprintf(a.out, format+"\n", args...)
	}
	return nil
}

var jobStates = map[v1.JobState]string{
	v1.JobState_JOB_STATE_STARTING: "starting", v1.JobState_JOB_STATE_RUNNING: "running", v1.JobState_JOB_STATE_DUMPING: "dumping",
	v1.JobState_JOB_STATE_RESTORING: "restoring", v1.JobState_JOB_STATE_STOPPED: "stopped", v1.JobState_JOB_STATE_DONE: "done",
	v1.JobState_JOB_STATE_FAILED: "failed", v1.JobState_JOB_STATE_KILLED: "killed", v1.JobState_JOB_STATE_SUSPENDED: "suspended",
	v1.JobState_JOB_STATE_BACKOFF: "waiting to restart",
}

func jobState(j *v1.Job) string {
	state := jobStates[j.GetState()]
	if state == "" {
		return "unknown"
	}
	if e := j.GetExit(); e != nil && j.GetState() == v1.JobState_JOB_STATE_FAILED {
		if e.GetSignal() != 0 {
			return fmt.Sprintf("%s (signal %d)", state, e.GetSignal())
		}
		return fmt.Sprintf("%s (%d)", state, e.GetCode())
	}
	return state
}

// ago says how long something is past, or to come, with as much as fits a table.
func ago(t time.Time) string {
	d := time.Since(t)
	if d < 0 {
		return "in " + coarse(-d)
	}
	return coarse(d) + " ago"
}

func coarse(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// completeJob completes names of jobs, if a daemon runs that can be asked.
func (a *app) completeJob(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || a.config == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.daemon(cmd.Context(), false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.Close()
	list, err := allJobs(cmd.Context(), c, true)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, j := range list {
		names = append(names, j.GetSpec().GetName()+"\t"+jobState(j))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// allJobs asks for all pages; brief ones have what a table shows.
func allJobs(ctx context.Context, c *client.Client, brief bool) ([]*v1.Job, error) {
	var all []*v1.Job
	for token := ""; ; {
		page, err := c.Jobs.List(ctx, connect.NewRequest(&v1.ListJobsRequest{PageSize: 1000, PageToken: token, Brief: brief}))
		if err != nil {
			return nil, err
		}
		all = append(all, page.Msg.GetJobs()...)
		if token = page.Msg.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

// oneJob is for commands about one job.
func oneJob(cmd *cobra.Command, args []string) error {
	return oneArg("the name of the job")(cmd, args)
}
