package cli

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stasis/internal/chain"
	"stasis/internal/image"
)

// pruneFlags are the flags of prune.
type pruneFlags struct {
	options chain.Options
	policy  chain.Policy
	groupBy string
}

func (a *app) pruneCommand() *cobra.Command {
	f := &pruneFlags{groupBy: "program"}
	cmd := &cobra.Command{
		Use:   "prune [DIR]",
		Short: "Remove old checkpoints, but those that a policy keeps",
		Long: `Removes the checkpoints in the folders of DIR, or of the default folder, that no rule keeps. Of each of the last N hours (days, weeks,
months, years) that have a checkpoint, the newest is kept; and as long as a rule has not found N, the oldest of all is kept by it.
N is a number, or -1 for every one. The rules apply to each program by itself (--group-by).

Nothing that is kept is broken: what it needs of those that go stays, as with rm. Deduplicated checkpoints go, and pre-dumps that are
older than the newest dump. What is in use stays until the next time.`,
		Example: `  stasis prune --keep-last 3 --keep-daily 7 --keep-weekly 4 --dry-run
  stasis prune /srv/checkpoints --keep-within 2d12h --max-size 20G`,
		Args: atMostOneArg,
		RunE: func(_ *cobra.Command, args []string) error { return a.runPrune(a.folderOf(args), f) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	for _, rule := range []struct {
		name, help string
		into       *int
	}{
		{"keep-last", "keep the newest `N`", &f.policy.Last},
		{"keep-hourly", "keep the newest of each of the last `N` hours", &f.policy.Hourly},
		{"keep-daily", "keep the newest of each of the last `N` days", &f.policy.Daily},
		{"keep-weekly", "keep the newest of each of the last `N` weeks", &f.policy.Weekly},
		{"keep-monthly", "keep the newest of each of the last `N` months", &f.policy.Monthly},
		{"keep-yearly", "keep the newest of each of the last `N` years", &f.policy.Yearly},
	} {
		flags.Var(count{rule.into}, rule.name, rule.help)
	}
	flags.Var(timeSpan{&f.policy.Within}, "keep-within", "keep all that are not older than this `TIME`, such as 1y6m, 7d or 2d12h (30min), counted from the newest")
	flags.Var(&size{most: math.MaxInt64, into: func(n int64) { f.policy.MaxBytes = n }}, "max-size",
		"then remove the oldest until all take at most this `SIZE`; the newest of each program stays")
	flags.Var(oneOf{&f.groupBy, []string{"program", "pid", "none"}}, "group-by", "apply the rules to each program, to each process id, or to all together")
	addChangeFlags(cmd, &f.options)
	return cmd
}

// count is a number of checkpoints; -1 means all.
type count struct{ into *int }

func (c count) Type() string { return "N" }

func (c count) String() string {
	if c.into == nil || *c.into == 0 {
		return ""
	}
	return strconv.Itoa(*c.into)
}

func (c count) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < chain.All {
		return errors.New("it is a number of checkpoints, or -1 for all")
	}
	*c.into = n
	return nil
}

// timeSpan is a time in years, months, days and hours.
type timeSpan struct{ into *chain.Span }

func (s timeSpan) Type() string { return "TIME" }

func (s timeSpan) String() string {
	if s.into == nil {
		return ""
	}
	return s.into.String()
}

func (s timeSpan) Set(text string) (err error) {
	*s.into, err = chain.ParseSpan(text)
	return err
}

// pruneReport is the result for programs.
type pruneReport struct {
	Decisions []chain.Decision `json:"decisions"`
	*chain.Report
}

func (a *app) runPrune(dir string, f *pruneFlags) error {
	if _, err := a.listCheckpoints(dir); err != nil {
		return err
	}
	o := chain.PruneOptions{Options: f.options, Policy: f.policy}
	switch f.groupBy {
	case "pid":
		o.GroupBy = func(m *image.Manifest) string { return strconv.Itoa(m.RootPID) }
	case "none":
		o.GroupBy = func(*image.Manifest) string { return "" }
	}
	decisions, report, err := chain.Prune(dir, o)
	if errors.Is(err, chain.ErrNoPolicy) {
		return badInput("%w: say it by --keep-last, --keep-daily … --keep-within or --max-size", err)
	}
	if err != nil {
		return err
	}
	if a.output == outputJSON {
		return a.writeJSON(pruneReport{decisions, report})
	}
	if a.quiet {
		return nil
	}
	var rows [][]string
	for _, d := range decisions {
		what := "remove"
		if d.Keep {
			what = "keep"
		}
		rows = append(rows, []string{what, filepath.Base(d.Dir), d.Created.Local().Format(time.DateTime), d.Group, strings.Join(d.Reasons, ", ")})
	}
	if err := table(a.out, []string{"", "NAME", "CREATED", "GROUP", "WHY"}, rows); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	report.Removed = nil // the table has them
	return a.showReport(report, f.options.DryRun, "")
}
