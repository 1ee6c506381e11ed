package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"stasis"
)

func (a *app) trackersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trackers",
		Short: "List the processes whose writes are tracked between dumps",
		Long: `Lists what keeps track of the writes of processes between two dumps (dump --track-mem, pre-dump): one small process, stasis-tracker,
for each tree. It ends with its tree. SINCE is the checkpoint that a next dump has to name as its parent to copy only what was
written; where it is -, the last dump with the tracker did not succeed, and the next one compares all memory. One that does not
answer is named below the others.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.runTrackers() },
	}
	stop := &cobra.Command{
		Use:     "stop PID…",
		Short:   "End the tracking of processes",
		Long:    `Ends the tracking of processes, which notice nothing. The next dump on top of an earlier one then compares all memory with it.`,
		Example: "  stasis trackers stop 4711",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &inputError{err: fmt.Errorf("which process? \"stasis trackers\" lists those that are tracked"), help: cmd.CommandPath()}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return a.runStopTrackers(args) },
	}
	cmd.AddCommand(stop)
	return cmd
}

// trackerReport is one tracker, for programs.
type trackerReport struct {
	PID       int       `json:"pid"`
	Command   string    `json:"command"`
	Processes int       `json:"processes"`
	Keeper    int       `json:"keeper"` // pid of stasis-tracker
	Memory    int64     `json:"bytes_memory"`
	Tracker   string    `json:"tracker"`
	Armed     string    `json:"armed"` // id of the checkpoint; "" if none
	Dir       string    `json:"dir"`
	Since     time.Time `json:"since"`
	Problem   string    `json:"problem,omitempty"` // why it did not answer
}

func (a *app) runTrackers() error {
	list, err := stasis.Trackers()
	if err != nil {
		return err
	}
	reports := make([]trackerReport, len(list))
	for i, t := range list {
		reports[i] = trackerReport(t)
	}
	if a.output == outputJSON {
		return a.writeJSON(reports)
	}
	if len(reports) == 0 {
		if !a.quiet {
			fmt.Fprintln(a.out, "no process is tracked")
		}
		return nil
	}
	table := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PID\tCOMMAND\tPROCESSES\tSINCE\tAGE\tTRACKER\tMEMORY")
	for _, r := range reports {
		if r.Problem != "" {
			continue
		}
		since, age := "-", "-"
		if r.Armed != "" {
			since, age = printable(r.Dir), strings.ToLower(units.HumanDuration(time.Since(r.Since)))
		}
		fmt.Fprintf(table, "%d\t%s\t%d\t%s\t%s\t%s (%d)\t%s\n", r.PID, printable(r.Command), r.Processes, since, age, r.Tracker, r.Keeper, inBytes(r.Memory))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, r := range reports {
		if r.Problem != "" {
			fmt.Fprintf(a.out, "the tracker of %d (%s), process %d: %s; let it go on (kill -CONT %d), or end it (stasis trackers stop %d)\n",
				r.PID, printable(r.Command), r.Keeper, r.Problem, r.Keeper, r.PID)
		}
	}
	return nil
}

func (a *app) runStopTrackers(args []string) error {
	for _, arg := range args {
		pid, err := parsePID(arg)
		if err != nil {
			return err
		}
		if err := stasis.StopTracker(pid); err != nil {
			return err
		}
		if a.output != outputJSON && !a.quiet {
			fmt.Fprintf(a.out, "process %d is not tracked any more\n", pid)
		}
	}
	if a.output == outputJSON {
		return a.writeJSON(args)
	}
	return nil
}
