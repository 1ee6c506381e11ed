package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"stasis/internal/chain"
	"stasis/internal/image"
)

func (a *app) checkpointsCommand() *cobra.Command {
	var all bool
	var job string
	cmd := &cobra.Command{
		Use:     "checkpoints [DIR]",
		Aliases: []string{"ls"},
		Short:   "List checkpoints and how they build on each other",
		Long: `Lists the checkpoints in the folders of DIR, or of the default folder, the oldest first. BUILDS ON is the parent and, in brackets, how
many checkpoints the chain has below it; NEEDED BY is how many others hold no copy of memory that this one has. DISK is what its
folder takes.

Pre-dumps and what is left of removed checkpoints, also by compact (.NAME.ID), are shown with --all. Checkpoints of jobs are in folders of their own: --job lists them.

A user who is not root has no access to the default folder, and gets from the daemon the list of his own, those of his jobs included.`,
		Example: "  stasis checkpoints\n  stasis checkpoints --job simulate\n  stasis checkpoints /srv/checkpoints --all -o json",
		Args:    atMostOneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && os.Geteuid() != 0 && !mayRead(a.config.Checkpoint.Dir) {
				return a.ownCheckpoints(cmd.Context(), job, all)
			}
			if job != "" {
				if len(args) > 0 || !isName(job) {
					return badInput("--job takes the name of a job, and no folder beside it")
				}
				args = []string{filepath.Join(a.config.Checkpoint.Dir, "jobs", job)}
				if _, err := os.Stat(args[0]); errors.Is(err, fs.ErrNotExist) {
					return badInput("root has no job %s, or none that was ever checkpointed: \"stasis ps\" lists the jobs", job)
				}
			}
			return a.runCheckpoints(a.folderOf(args), all)
		},
	}
	cmd.Flags().StringVar(&job, "job", "", "those of `JOB`")
	must(cmd.RegisterFlagCompletionFunc("job", a.completeJob))
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also show pre-dumps and what is left of removed checkpoints")
	return cmd
}

// atMostOneArg is for commands whose argument has a default.
func atMostOneArg(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return surplus(cmd, args[1:])
	}
	return nil
}

// folderOf is the folder of checkpoints that a command is about.
func (a *app) folderOf(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return a.config.Checkpoint.Dir
}

func (a *app) runCheckpoints(dir string, all bool) error {
	list, err := a.listCheckpoints(dir)
	if err != nil {
		return err
	}
	shown := make([]chain.Info, 0, len(list))
	for _, i := range list {
		if all || i.State != chain.StateRemoved && i.Kind != image.KindPreDump {
			shown = append(shown, i)
		}
	}
	if a.output == outputJSON {
		return a.writeJSON(shown)
	}
	if len(list) == 0 {
		if !a.quiet {
			fmt.Fprintf(a.out, "no checkpoints in %s\n", printable(dir))
			a.hintAtJobs(dir)
		}
		return nil
	}
	if err := table(a.out, checkpointColumns, checkpointRows(shown, list)); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if hidden := len(list) - len(shown); hidden > 0 && !a.quiet {
		fmt.Fprintf(a.err, "%d more not shown: pre-dumps and what is left of removed ones (--all shows them)\n", hidden)
	}
	if !a.quiet {
		a.hintAtJobs(dir)
	}
	return nil
}

// hintAtJobs says where the checkpoints of jobs are, if there are any.
func (a *app) hintAtJobs(dir string) {
	if dir != a.config.Checkpoint.Dir {
		return
	}
	if jobs, err := os.ReadDir(filepath.Join(dir, "jobs")); err == nil && len(jobs) > 0 {
		fmt.Fprintf(a.err, "those of %s are listed by stasis checkpoints --job NAME\n", plural(len(jobs), "job"))
	}
}

// listCheckpoints is chain.List with errors for people. A default folder that nothing was dumped to yet is an empty one.
func (a *app) listCheckpoints(dir string) ([]chain.Info, error) {
	if hasManifest(dir) {
		return nil, badInput("%s is a checkpoint itself: give the folder that it is in, or see what is in it by stasis inspect %[1]s", dir)
	}
	list, err := chain.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if dir == a.config.Checkpoint.Dir {
			return nil, nil
		}
		return nil, badInput("there is no folder %s: check the path", dir)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return nil, badInput("%s is no folder: give the one that the checkpoints are in", dir)
	}
	return list, err
}

var checkpointColumns = []string{"NAME", "CREATED", "PROGRAM", "MEMORY", "DISK", "BUILDS ON", "NEEDED BY", "STATE"}

func checkpointRows(shown, all []chain.Info) [][]string {
	names := make(map[string]string, len(all))
	for _, i := range all {
		names[i.ID] = filepath.Base(i.Dir)
	}
	var rows [][]string
	for _, i := range shown {
		created := "–"
		if !i.Created.IsZero() {
			created = i.Created.Local().Format(time.DateTime)
		}
		program, memory := "–", "–"
		if i.PID != 0 {
			program, memory = fmt.Sprintf("%s (%d)", shorten(withoutFolder(i.Command), 30), i.PID), inBytes(i.BytesMemory)
		}
		rows = append(rows, []string{
			filepath.Base(i.Dir), created, program, memory, inBytes(i.BytesDisk),
			buildsOn(i, names), neededBy(len(i.Dependents)), stateOf(i),
		})
	}
	return rows
}

// withoutFolder drops the folder of the program from a command.
func withoutFolder(command string) string {
	if command == "" {
		return "–" // a page server sees no command
	}
	program, arguments, _ := strings.Cut(command, " ")
	return strings.TrimSpace(filepath.Base(program) + " " + arguments)
}

func buildsOn(i chain.Info, names map[string]string) string {
	if i.Parent == "" {
		return "–"
	}
	name := names[i.Parent]
	if name == "" {
		name = i.Parent[:min(8, len(i.Parent))]
	}
	return fmt.Sprintf("%s (%d)", name, max(i.Depth, 1))
}

func neededBy(n int) string {
	if n == 0 {
		return "–"
	}
	return fmt.Sprint(n)
}

func stateOf(i chain.Info) string {
	switch {
	case i.State == chain.StateUnreadable:
		return "unreadable: " + shorten(i.Error, 100)
	case i.State != chain.StateWhole:
		return string(i.State)
	case i.Kind == image.KindPreDump:
		return i.Kind
	}
	return "whole"
}
