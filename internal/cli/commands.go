package cli

import "github.com/spf13/cobra"

// commands are those of the root, each in a file of its own.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.dumpCommand(),
		a.preDumpCommand(),
		a.restoreCommand(),
		a.verifyCommand(),
		a.inspectCommand(),
		a.pageServerCommand(),
		a.trackersCommand(),
		a.exportCommand(),
		a.importCommand(),
		a.checkpointsCommand(),
		a.rmCommand(),
		a.pruneCommand(),
		a.dedupCommand(),
		a.compactCommand(),
		a.runCommand(),
		a.psCommand(),
		a.logsCommand(),
		a.attachCommand(),
		a.killCommand(),
		a.updateCommand(),
		a.manageCommand(),
		a.eventsCommand(),
		a.evacuateCommand(),
		a.checkCommand(),
		a.daemonCommand(),
		a.configCommand(),
		a.versionCommand(),
		a.manCommand(),
	}
}
