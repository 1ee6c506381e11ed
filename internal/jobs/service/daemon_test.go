package service_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "stasis/api/stasis/v1"
	"stasis/client"
	"stasis/internal/config"
	"stasis/internal/daemon"
	"stasis/internal/engine"
	"stasis/internal/jobs/service"
	"stasis/internal/require"
)

// daemonFor is the configuration of a daemon in a folder of the test.
func daemonFor(tb testing.TB) *config.Config {
	tb.Helper()
	dir := tb.TempDir()
	c := config.Default()
	c.Checkpoint.Dir, c.Daemon.Socket = filepath.Join(dir, "checkpoints"), filepath.Join(dir, "s.sock")
	c.Jobs.Dir, c.Jobs.State = filepath.Join(dir, "jobs"), filepath.Join(dir, "state.db")
	return c
}

// serveAll is a whole daemon in this process, as "stasis daemon start" has it. Its jobs end with the test.
func serveAll(tb testing.TB, c *config.Config, change func(*daemon.Options)) *client.Client {
	tb.Helper()
	require.Root(tb)
	o := daemon.Options{Config: c, Log: slog.New(slog.DiscardHandler), Jobs: func(e *engine.Engine, log *slog.Logger) (daemon.Jobs, error) {
		return service.New(e, "", log)
	}}
	if change != nil {
		change(&o)
	}
	listening, err := daemon.Listen(&c.Daemon, 0)
	if err != nil {
		tb.Fatal(err)
	}
	d, err := daemon.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.Serve(listening.Listeners...); listening.Close() }()
	tb.Cleanup(func() {
		d.Stop()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	connected, err := client.Connect(tb.Context(), client.Options{Socket: c.Daemon.Socket})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		list, err := connected.Jobs.List(ctx, connect.NewRequest(&v1.ListJobsRequest{PageSize: 1000, Brief: true}))
		if err != nil {
			tb.Error(err)
			return
		}
		for _, j := range list.Msg.GetJobs() {
			remove := &v1.RemoveJobRequest{Job: j.GetId(), Force: true, Checkpoints: true}
			if _, err := connected.Jobs.Remove(ctx, connect.NewRequest(remove)); err != nil {
				tb.Error(err)
			}
		}
		connected.Close()
	})
	return connected
}
