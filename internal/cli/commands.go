package cli

import "github.com/spf13/cobra"

// group is a part of the list of commands, under a heading of its own.
type group struct {
	id, title string
	commands  []*cobra.Command
}

// groups are the commands of the root, each in a file of its own.
func (a *app) groups() []group {
	return []group{
		{"process", "Save processes and bring them back:", []*cobra.Command{
			a.dumpCommand(), a.preDumpCommand(), a.restoreCommand(), a.trackersCommand(), a.checkCommand(),
		}},
		{"checkpoint", "Look after checkpoints:", []*cobra.Command{
			a.checkpointsCommand(), a.inspectCommand(), a.verifyCommand(), a.rmCommand(), a.pruneCommand(), a.dedupCommand(), a.compactCommand(),
		}},
		{"criu", "Exchange them with CRIU:", []*cobra.Command{
			a.exportCommand(), a.importCommand(), a.pageServerCommand(),
		}},
		{"job", "Run jobs that are checkpointed and brought back by themselves:", []*cobra.Command{
			a.runCommand(), a.manageCommand(), a.psCommand(), a.logsCommand(), a.attachCommand(), a.killCommand(), a.updateCommand(),
			a.eventsCommand(), a.evacuateCommand(),
		}},
		{stasisGroup, "Stasis itself:", []*cobra.Command{
			a.daemonCommand(), a.configCommand(), a.versionCommand(), a.manCommand(),
		}},
	}
}

// stasisGroup is where help and completion are, too.
const stasisGroup = "stasis"
