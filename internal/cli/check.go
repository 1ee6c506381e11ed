package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"stasis/internal/health"
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check [PID]",
		Short: "Say whether this machine, or a process, can be dumped and restored",
		Long: `Without a process id, says what this machine has and lacks for dumps and restores, and what to do about it. With one, says
whether that process and its descendants can be dumped, and what stands in the way. Neither touches any process.

It exits with 1 if something fails; warnings are for things that cost time or some kinds of processes.`,
		Example: "  stasis check\n  stasis check 4711",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return surplus(cmd, args[1:])
			}
			return nil
		},
		ValidArgsFunction: completePID,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runCheck(cmd.Context(), args) },
	}
}

// checkReport is the result for programs.
type checkReport struct {
	OK      bool            `json:"ok"` // nothing fails
	PID     int             `json:"pid,omitempty"`
	Results []health.Result `json:"results"`
}

func (a *app) runCheck(ctx context.Context, args []string) error {
	report := checkReport{OK: true}
	if len(args) == 0 {
		report.Results = a.machine(ctx, a.criuPath)
	} else {
		pid, err := parsePID(args[0])
		if err != nil {
			return err
		}
		report.PID, report.Results = pid, a.process(ctx, pid)
	}
	return a.tellCheck(&report)
}

// tellCheck shows what was found, and decides about the exit code.
func (a *app) tellCheck(report *checkReport) error {
	var failed, warned int
	for _, r := range report.Results {
		switch r.Status {
		case health.Fail:
			failed++
		case health.Warn:
			warned++
		}
	}
	report.OK = failed == 0
	if err := a.showCheck(report, failed, warned); err != nil {
		return err
	}
	if !report.OK {
		return exitStatus(exitFailure)
	}
	return nil
}

func (a *app) showCheck(report *checkReport, failed, warned int) error {
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	var rows [][]string
	for _, r := range report.Results {
		rows = append(rows, []string{string(r.Status), r.Name, r.Detail})
		if r.Remedy != "" {
			rows = append(rows, []string{"", "", "→ " + r.Remedy})
		}
	}
	if err := table(a.out, nil, rows); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if a.quiet {
		return nil
	}
	what := "this machine can dump and restore"
	if report.PID != 0 {
		what = fmt.Sprintf("process %d can be dumped", report.PID)
	}
	var but []string
	if failed > 0 {
		what = strings.Replace(what, " can ", " cannot ", 1)
		but = append(but, plural(failed, "failure"))
	}
	if warned > 0 {
		but = append(but, plural(warned, "warning"))
	}
	if len(but) > 0 {
		what += ": " + strings.Join(but, ", ")
	}
	fmt.Fprintf(a.out, "\n%s\n", what)
	return nil
}
