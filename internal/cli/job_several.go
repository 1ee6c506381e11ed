package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"stasis"
	"stasis/client"
)

// severalJobs ends the help of commands that take several.
const severalJobs = `

Of several jobs each is tried; those that fail are said, and the others done all the same.`

// someJobs is for commands about one job or several.
func someJobs(cmd *cobra.Command, args []string) error {
	return someArgs("which job? Give names that stasis ps lists")(cmd, args)
}

// eachJob does something with each job, one after the other, and goes on after a failure. tell says in words what came of one. The exit code is that
// of the failures, where all are of a kind. For programs one job gives one object, and several give an array in the order of the names, in which
// an error stands with its job.
func eachJob[M proto.Message](a *app, ctx context.Context, names []string, do func(*client.Client, string) (M, error), tell func(M)) error {
	c, err := a.daemon(ctx, true)
	if err != nil {
		return err
	}
	defer c.Close()
	results := make([]any, 0, len(names))
	codes := make(map[int]bool)
	for _, name := range names {
		m, err := do(c, name)
		err = client.Explain(err)
		switch {
		case err != nil && len(names) == 1, ctx.Err() != nil:
			return errors.Join(err, ctx.Err())
		case err != nil:
			kind, code := kindOf(err)
			codes[code] = true
			results = append(results, failedJob{name, failure{
				Error: sentence(err), Step: string(stasis.FailedStep(err)), Kind: kind, ExitCode: code, Damage: damages(err),
			}})
			if a.output != outputJSON {
				fmt.Fprintf(a.err, "stasis: %s: %s\n", printable(name), strings.ReplaceAll(sentence(err), "\n", "\n  "))
			}
		case a.output == outputJSON:
			text, err := asJSON(m)
			if err != nil {
				return err
			}
			results = append(results, text)
		case !a.quiet:
			tell(m)
		}
	}
	if a.output == outputJSON {
		if err := a.writeJSON(oneOrAll(results)); err != nil {
			return err
		}
	}
	return codeFor(codes)
}

// failedJob is the JSON form of a failure of one of several jobs.
type failedJob struct {
	Job string `json:"job"`
	failure
}

func oneOrAll(results []any) any {
	if len(results) == 1 {
		return results[0]
	}
	return results
}

// codeFor is the exit code of several failures that have been said already.
func codeFor(codes map[int]bool) error {
	switch len(codes) {
	case 0:
		return nil
	case 1:
		for code := range codes {
			return exitStatus(code)
		}
	}
	return exitStatus(exitFailure)
}

// completeJobs completes any number of names of jobs, those that stand there already left out.
func (a *app) completeJobs(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	list, directive := a.completeJob(cmd, nil, typed)
	var others []string
	for _, one := range list {
		name, _, _ := strings.Cut(one, "\t")
		if !slices.Contains(args, name) {
			others = append(others, one)
		}
	}
	return others, directive
}
