package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"stasis"
	"stasis/internal/image"
)

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect DIR",
		Short: "Show what is in a checkpoint",
		Long: `Shows the process tree, memory by kind, open files, sockets, sizes by stream and codec, and the figures of the dump. DIR is a
folder or the name of a checkpoint in the default folder. Only the manifest and the index are read, whatever the size.`,
		Example:           "  stasis inspect before-update\n  stasis inspect /srv/one -o json",
		Args:              oneArg("the checkpoint"),
		ValidArgsFunction: a.completeCheckpoint,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runInspect(cmd.Context(), args[0]) },
	}
}

// inspectReport is the result, for people and for programs.
type inspectReport struct{ *stasis.Inspection }

func (a *app) runInspect(ctx context.Context, arg string) error {
	dir, err := a.locate(arg)
	if err != nil {
		return err
	}
	found, err := stasis.Inspect(ctx, dir)
	if err != nil {
		return err //nolint:wrapcheck // it says all there is to say
	}
	if a.output == outputJSON {
		return a.writeJSON(found)
	}
	if err := (inspectReport{found}).show(a.out); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// treeRows lists processes with their descendants indented below them.
func treeRows(m *image.Manifest) [][]string {
	children := make(map[int][]image.Process)
	known := make(map[int]bool)
	for _, p := range m.Processes {
		known[p.PID] = true
	}
	for _, p := range m.Processes {
		parent := p.PPID
		if !known[parent] || parent == p.PID || p.PID == m.RootPID {
			parent = 0 // the root, and whatever hangs nowhere
		}
		children[parent] = append(children[parent], p)
	}
	var rows [][]string
	var add func(parent, depth int)
	add = func(parent, depth int) {
		for _, p := range children[parent] {
			command := strings.TrimSpace(strings.Join(p.Cmdline, " "))
			if command == "" && p.Comm != "" {
				command = "[" + p.Comm + "]"
			}
			rows = append(rows, []string{
				strconv.Itoa(p.PID), strconv.Itoa(p.PPID), p.State, strconv.Itoa(len(p.Threads)), strings.Repeat("  ", depth) + shorten(command, 80),
			})
			if len(rows) <= len(m.Processes) { // a damaged tree can be a circle
				add(p.PID, depth+1)
			}
		}
	}
	add(0, 0)
	return rows
}

func shorten(s string, limit int) string {
	if runes := []rune(s); len(runes) > limit {
		return string(runes[:limit-1]) + "…"
	}
	return s
}
