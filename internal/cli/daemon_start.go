package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/daemon"
	"stasis/internal/tracing"
)

// startWithin is how long a daemon may take to answer, and how long one that stops is waited for.
const startWithin = 15 * time.Second

func (a *app) daemonStartCommand() *cobra.Command {
	var foreground, onDemand bool
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Start the daemon",
		Long: `Starts the daemon in the background, where it logs to the file log.file of the configuration, and returns when it answers. With
--foreground it stays, and logs to standard error; that is how a service manager starts it.

SIGTERM and SIGINT stop it as "stasis daemon stop" does; a second one cancels what it waits for.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.socketOf(cmd); err != nil {
				return err
			}
			switch {
			case os.Geteuid() != 0:
				return badInput("the daemon has to run as root: it dumps and restores processes of all users")
			case foreground || onDemand:
				return a.runDaemon(cmd.Context(), onDemand)
			}
			return a.runDaemonStart(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&foreground, "foreground", false, "stay in the foreground")
	cmd.Flags().BoolVar(&onDemand, "on-demand", false, "leave when there is nothing to do for a while (daemon.idle_timeout)")
	return cmd
}

// runDaemonStart starts a daemon in the background.
func (a *app) runDaemonStart(ctx context.Context) error {
	report, err := a.daemonStatus(ctx)
	if err != nil {
		return err
	}
	if report.Running {
		return a.tellStarted(report, "a daemon runs already")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program, to start a daemon: %w", err)
	}
	log, err := a.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	cmd := exec.Command(self, append([]string{"daemon", "start", "--foreground"}, a.sameSettings()...)...) //nolint:noctx // it outlives this program
	cmd.Dir, cmd.Stderr, cmd.SysProcAttr, cmd.Env = "/", log, &syscall.SysProcAttr{Setsid: true}, a.environ
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if report, err = a.daemonStatus(ctx); err == nil && report.Running {
			return a.tellStarted(report, "started the daemon")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon (process %d) does not answer within %v: %s has more", cmd.Process.Pid, startWithin, log.Name())
		case err := <-ended:
			text, _ := io.ReadAll(io.NewSectionReader(log, before, 1<<16))
			return fmt.Errorf("the daemon ended at once (%w):\n%s", err, text)
		case <-tick.C:
		}
	}
}

func (a *app) tellStarted(report *statusReport, what string) error {
	if a.output == outputJSON {
		return a.writeJSON(report)
	}
	if !a.quiet {
		fmt.Fprintf(a.out, "%s: process %d, on %s\n", what, report.PID, a.config.Daemon.Socket)
	}
	return nil
}

func (a *app) openLog() (*os.File, error) {
	path := a.config.Log.File
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, badInput("make the folder for the log: %w: set log.file to another", err)
	}
	log, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, badInput("open the log: %w: set log.file to another", err)
	}
	return log, nil
}

// runDaemon is the daemon.
func (a *app) runDaemon(ctx context.Context, onDemand bool) error {
	// Restored jobs are children of the daemon; its terminal, if it has one, is not theirs.
	wait := time.Duration(0)
	if onDemand {
		wait = startWithin // one that is about to leave gives way
		if report, err := a.daemonStatus(ctx); err == nil && report.Running {
			return nil
		}
	}
	listening, err := daemon.Listen(&a.config.Daemon, wait)
	if errors.Is(err, daemon.ErrRunning) && onDemand {
		return nil // somebody else was faster
	} else if err != nil {
		return err
	}
	defer listening.Close()
	if onDemand {
		if err := a.logToFile(); err != nil {
			return err
		}
	}
	log := a.logger()
	traces := tracing.Start(tracing.Options{Collector: a.config.Trace.Collector, Version: stasis.Version, Flush: flushDaemon, Log: log})
	defer traces.Stop()
	d, err := daemon.New(daemon.Options{
		Config: a.config, Log: log, CRIUPath: a.criuPath, OnDemand: onDemand, Interceptors: traces.Interceptors(), Jobs: a.jobsOfDaemon(),
	})
	if err != nil {
		return err
	}
	// The first signal has cancelled the context; the next ones are for here.
	again := make(chan os.Signal, 1)
	stop := context.AfterFunc(ctx, func() {
		signal.Notify(again, ending...)
		// The unit's TimeoutStopSec may be less than what is configured here.
		daemon.Notify(fmt.Sprintf("STOPPING=1\nEXTEND_TIMEOUT_USEC=%d", d.StopsWithin().Microseconds()), log)
		d.Stop()
		<-again
		log.Warn("asked to stop again: cancelling what is under way")
		d.Abandon()
	})
	defer stop()
	daemon.Notify("READY=1", log)
	return d.Serve(listening.Listeners...)
}

// logToFile lets go of the standard error of whoever started this daemon.
func (a *app) logToFile() error {
	log, err := a.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	for _, fd := range []int{unix.Stdout, unix.Stderr} {
		if err := unix.Dup3(int(log.Fd()), fd, 0); err != nil {
			return fmt.Errorf("log to %s: %w", log.Name(), err)
		}
	}
	return nil
}

func (a *app) logger() *slog.Logger {
	var level slog.Level
	must(level.UnmarshalText([]byte(a.config.Log.Level)))
	options := &slog.HandlerOptions{Level: level}
	if a.config.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(a.err, options))
	}
	return slog.New(slog.NewTextHandler(a.err, options))
}

// waitForEnd waits until a process has ended.
func waitForEnd(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return fmt.Errorf("wait for process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100) //nolint:gosec // a descriptor
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
	return context.Cause(ctx)
}
