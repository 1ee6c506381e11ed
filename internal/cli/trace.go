package cli

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"stasis"
	"stasis/internal/tracing"
)

// How long the end of a program may wait for the collector of traces.
const (
	flushCommand = time.Second
	flushDaemon  = 3 * time.Second
)

// beginTrace gives a command a span, where traces are configured. The daemon has traces of its own, without one that lasts as long as it.
func (a *app) beginTrace(cmd *cobra.Command) {
	if cmd.Name() == "start" && cmd.Parent() != nil && cmd.Parent().Name() == "daemon" {
		return
	}
	log := a.logger()
	if a.quiet {
		log = slog.New(slog.DiscardHandler)
	}
	a.traces = tracing.Start(tracing.Options{Collector: a.config.Trace.Collector, Version: stasis.Version, Flush: flushCommand, Log: log})
	if a.traces == nil {
		return
	}
	var ctx context.Context
	ctx, a.span = otel.Tracer("stasis/cli").Start(cmd.Context(), cmd.CommandPath(), trace.WithSpanKind(trace.SpanKindInternal))
	cmd.SetContext(ctx)
}

// endTrace ends that span and sends what there is to be sent.
func (a *app) endTrace(err error) {
	if a.traces == nil {
		return
	}
	if status := exitStatus(0); err != nil && !errors.As(err, &status) {
		a.span.SetStatus(codes.Error, err.Error())
	}
	a.span.End()
	a.traces.Stop()
	a.traces = nil
}
