package service

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"time"
)

const (
	// underSystemd is there where systemd is the machine's first process (sd_booted(3)).
	underSystemd = "/run/systemd/system"
	// askWithin bounds the wait for systemd's answer, which takes milliseconds.
	askWithin = 10 * time.Second
)

// machineGoesDown says whether the whole machine is being shut down or rebooted, and not only this daemon stopped. systemd knows it from the
// moment on in which it has been asked to, which is before it stops the first service. Without systemd nobody knows.
func machineGoesDown(log *slog.Logger) bool { return goesDown(underSystemd, log) }

func goesDown(underSystemd string, log *slog.Logger) bool {
	if _, err := os.Stat(underSystemd); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), askWithin)
	defer cancel()
	state, err := exec.CommandContext(ctx, "systemctl", "is-system-running").Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) { // it exits with 1 unless all is well
		log.Warn("cannot ask systemd whether the machine is going down", "error", err)
	}
	return string(bytes.TrimSpace(state)) == "stopping"
}
