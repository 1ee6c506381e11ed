package cli

import (
	"log/slog"

	"stasis/internal/daemon"
	"stasis/internal/engine"
)

// jobsOfDaemon makes what looks after the jobs of a daemon; nil: nothing does.
func (a *app) jobsOfDaemon() func(*engine.Engine, *slog.Logger) (daemon.Jobs, error) {
	return nil
}
