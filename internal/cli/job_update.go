package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
)

func (a *app) updateCommand() *cobra.Command {
	f := &jobFlags{}
	var noSchedule bool
	cmd := &cobra.Command{
		Use:   "update JOB…",
		Short: "Change when jobs are checkpointed, what is kept, and when they are brought back",
		Long: `Changes schedule, retention or restart of a job, which runs on as it is; what no flag names stays. A number of 0 takes a rule away. What
is kept no longer is deleted after the next checkpoint.

How a job is dumped cannot be changed.` + severalJobs,
		Example:           "  stasis update simulate --every 10m --keep-last 3\n  stasis update simulate --restart no\n  stasis update simulate --no-schedule",
		Args:              someJobs,
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.given = cmd.Flags().Changed
			if err := f.checkUpdate(noSchedule); err != nil {
				return err
			}
			return a.runUpdate(cmd.Context(), args, f)
		},
	}
	f.addChangeable(cmd, "0: as configured", "")
	cmd.Flags().BoolVar(&noSchedule, "no-schedule", false, "make no more checkpoints on schedule")
	return cmd
}

// The flags by what they change. Of retention and restart the daemon takes all or none.
var (
	scheduleFlags  = []string{"every", "cron", "no-schedule"}
	retentionFlags = []string{"keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-bytes"}
	restartFlags   = []string{"restart", "max-retries", "restart-delay", "from-scratch"}
)

// anyOf says how many of some flags are given.
func (f *jobFlags) anyOf(names []string) (n int) {
	for _, name := range names {
		if f.given(name) {
			n++
		}
	}
	return n
}

func (f *jobFlags) checkUpdate(noSchedule bool) error {
	switch when := f.anyOf(scheduleFlags); {
	case when+f.anyOf(retentionFlags)+f.anyOf(restartFlags) == 0:
		return badInput("nothing to change: give a flag, such as --every 10m, --keep-last 3 or --restart no")
	case when > 1:
		return badInput("--every, --cron and --no-schedule each say when: choose one")
	case f.given("every") && f.every <= 0:
		return badInput("--every %v: it is a positive time; --no-schedule ends the schedule", f.every)
	case f.given("no-schedule") && !noSchedule:
		return badInput("--no-schedule=false says nothing: give --every or --cron")
	}
	return nil
}

// runUpdate asks what holds now, and sends it back with what is to be different: retention and restart are changed as a whole.
func (a *app) runUpdate(ctx context.Context, names []string, f *jobFlags) error {
	return eachJob(a, ctx, names, func(c *client.Client, job string) (*v1.Job, error) {
		now, err := c.Jobs.Get(ctx, connect.NewRequest(&v1.GetJobRequest{Job: job}))
		if err != nil {
			return nil, err
		}
		response, err := c.Jobs.Update(ctx, connect.NewRequest(f.change(now.Msg.GetJob())))
		if err != nil {
			return nil, err
		}
		return response.Msg.GetJob(), nil
	}, func(j *v1.Job) {
		next := ""
		if j.GetNextCheckpoint() != nil || f.given("no-schedule") {
			next = whenNext(j)
		}
		fmt.Fprintf(a.out, "job %s was changed%s\n", j.GetSpec().GetName(), next)
	})
}

// change makes the request that changes a job as the flags say.
func (f *jobFlags) change(j *v1.Job) *v1.UpdateJobRequest {
	q := &v1.UpdateJobRequest{Job: j.GetId()}
	if f.anyOf(scheduleFlags) > 0 {
		q.Schedule = &v1.Schedule{}
		switch {
		case f.given("every"):
			q.Schedule.When = &v1.Schedule_Every{Every: durationpb.New(f.every)}
		case f.given("cron"):
			q.Schedule.When = &v1.Schedule_Cron{Cron: f.cron}
		}
	}
	if f.anyOf(retentionFlags) > 0 {
		q.Retention = &v1.Retention{}
		proto.Merge(q.Retention, j.GetSpec().GetRetention())
		for name, set := range map[string]func(){
			"keep-last":    func() { q.Retention.KeepLast = f.keep.GetKeepLast() },
			"keep-hourly":  func() { q.Retention.KeepHourly = f.keep.GetKeepHourly() },
			"keep-daily":   func() { q.Retention.KeepDaily = f.keep.GetKeepDaily() },
			"keep-weekly":  func() { q.Retention.KeepWeekly = f.keep.GetKeepWeekly() },
			"keep-monthly": func() { q.Retention.KeepMonthly = f.keep.GetKeepMonthly() },
			"keep-bytes":   func() { q.Retention.MaxBytes = f.keep.GetMaxBytes() },
		} {
			if f.given(name) {
				set()
			}
		}
	}
	if f.anyOf(restartFlags) > 0 {
		q.Restart = &v1.Restart{}
		proto.Merge(q.Restart, j.GetSpec().GetRestart())
		for name, set := range map[string]func(){
			"restart":       func() { q.Restart.Policy = restartPolicies[f.restart] },
			"max-retries":   func() { q.Restart.MaxRetries = f.maxRetries },
			"restart-delay": func() { q.Restart.Delay = durationpb.New(f.restartDelay) },
			"from-scratch":  func() { q.Restart.FromScratch = f.fromScratch },
		} {
			if f.given(name) {
				set()
			}
		}
	}
	return q
}
