package cli

import (
	"log/slog"

	"stasis/internal/daemon"
	"stasis/internal/engine"
	"stasis/internal/jobs/service"
)

// jobsOfDaemon makes what looks after the jobs of a daemon.
func (a *app) jobsOfDaemon() func(*engine.Engine, *slog.Logger) (daemon.Jobs, error) {
	return func(e *engine.Engine, log *slog.Logger) (daemon.Jobs, error) {
		s, err := service.New(e, a.criuPath, log)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
}
