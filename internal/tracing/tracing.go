// Package tracing sends spans to a collector of OpenTelemetry, where that is configured.
//
// Words: a span is a piece of work with its beginning and end; a trace is a span with all that is below it, also in other programs.
//
// Where nobody asks for traces nothing is set up: the spans of the library and of the jobs go to OpenTelemetry's own provider that does
// nothing, and no call is intercepted. Where somebody does, nothing waits for the collector: spans go through a queue of bounded length, and
// what does not fit is dropped.
//
// [Start] sets up the provider of the whole program (otel.SetTracerProvider) and is called once.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"stasis/internal/config"
)

// Options say where spans go.
type Options struct {
	Collector string        // the setting trace.collector
	Version   string        // of the program
	Flush     time.Duration // how long the end of the program may wait for the collector
	Log       *slog.Logger
}

// Tracing is what Start has set up. nil stands for none.
type Tracing struct {
	provider *sdk.TracerProvider
	flush    time.Duration
	log      *slog.Logger
}

// tracesPath is where OTLP over HTTP has traces, below what a URL without a path names.
const tracesPath = "/v1/traces"

// Start begins to send spans where that is asked for. It returns nil where it is not, and where it cannot be done, which it logs: no work
// fails for its traces.
func Start(o Options) *Tracing {
	on, err := asked(o.Collector)
	if err == nil && on {
		t, startErr := start(o)
		if startErr == nil {
			return t
		}
		err = startErr
	}
	if err != nil {
		o.Log.Warn("no traces are sent", "error", err)
	}
	return nil
}

// asked says whether traces are to be sent. OpenTelemetry's own switches have precedence.
func asked(collector string) (bool, error) {
	if collector == config.TraceOff || strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	if collector == config.TraceAuto && variable("ENDPOINT") == "" {
		return false, nil
	}
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "", "otlp":
	case "none":
		return false, nil
	default:
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER is %q: only otlp and none are known", exporter)
	}
	if protocol := variable("PROTOCOL"); protocol == "grpc" {
		return false, errors.New("OTLP is spoken over HTTP alone: name the collector's port for that (4318), and let OTEL_EXPORTER_OTLP_PROTOCOL be http/protobuf")
	}
	return true, nil
}

// variable is one of the exporter's variables: the one for traces, else the one for everything.
func variable(name string) string {
	if value := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_" + name); value != "" {
		return value
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_" + name)
}

func start(o Options) (*Tracing, error) {
	// The package's own messages, which would go to standard error.
	otel.SetLogger(logr.FromSlogHandler(o.Log.Handler()))
	otel.SetErrorHandler(&once{log: o.Log})
	var options []otlptracehttp.Option
	if o.Collector != config.TraceAuto {
		u, err := url.Parse(o.Collector)
		if err != nil {
			return nil, err
		}
		if u.Path == "" || u.Path == "/" {
			u.Path = tracesPath
		}
		options = append(options, otlptracehttp.WithEndpointURL(u.String()))
	}
	exporter, err := otlptracehttp.New(context.Background(), options...)
	if err != nil {
		return nil, fmt.Errorf("send traces to %s: %w", o.Collector, err)
	}
	// No detector of processes: it would tell the command line.
	about, err := resource.New(context.Background(), resource.WithTelemetrySDK(), resource.WithHost(), resource.WithAttributes(
		attribute.String("service.name", "stasis"), attribute.String("service.version", o.Version), attribute.Int("process.pid", os.Getpid()),
	), resource.WithFromEnv())
	if err != nil {
		o.Log.Warn("traces say less about where they come from", "error", err)
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(&calm{SpanExporter: exporter, log: o.Log}), sdk.WithResource(about))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return &Tracing{provider: provider, flush: o.Flush, log: o.Log}, nil
}

// Stop sends what is left, within the time that the options give, and begins nothing new.
func (t *Tracing) Stop() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.flush)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("the last spans were not sent", "error", err)
	}
}

// Interceptors give each call of the API a span, below the caller's: on the side of the daemon as on that of a client.
func (t *Tracing) Interceptors() []connect.Interceptor {
	if t == nil {
		return nil
	}
	i, err := otelconnect.NewInterceptor(
		otelconnect.WithTracerProvider(t.provider), otelconnect.WithPropagator(propagation.TraceContext{}), otelconnect.WithTrustRemote(),
		otelconnect.WithMeterProvider(noop.NewMeterProvider()), // Prometheus has them
		otelconnect.WithFilter(func(_ context.Context, spec connect.Spec) bool { return strings.HasPrefix(spec.Procedure, "/stasis.") }),
	)
	if err != nil {
		t.log.Warn("calls have no traces", "error", err)
		return nil
	}
	return []connect.Interceptor{i}
}

// calm says once that the collector cannot be reached, and once that it is back.
type calm struct {
	sdk.SpanExporter
	log  *slog.Logger
	lost int // since it was last reached; the batcher exports from one goroutine
}

// ExportSpans implements sdk.SpanExporter.
func (c *calm) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := c.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil:
		if c.lost == 0 {
			c.log.Warn("the collector of traces does not take them; spans are dropped until it does, and nothing else is affected", "error", err)
		}
		c.lost += len(spans)
	case c.lost > 0:
		c.log.Info("the collector of traces takes them again", "dropped", c.lost)
		c.lost = 0
	}
	return nil
}

// once logs each error of the SDK, such as a variable that makes no sense, one time.
type once struct {
	log  *slog.Logger
	mu   sync.Mutex
	said map[string]bool // guarded by mu
}

// mostErrors bounds how many errors are remembered, and logged.
const mostErrors = 16

// Handle implements otel.ErrorHandler.
func (o *once) Handle(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if text := err.Error(); !o.said[text] && len(o.said) < mostErrors {
		if o.said == nil {
			o.said = make(map[string]bool)
		}
		o.said[text] = true
		o.log.Warn("traces", "error", err)
	}
}
