package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"stasis/api/stasis/v1/stasisv1connect"
	"stasis/internal/peer"
	"stasis/internal/wire"
)

// handler puts everything together that is served.
func (d *Daemon) handler() http.Handler {
	options := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage), connect.WithCompressMinBytes(worthIt), connect.WithRecover(d.recovered),
		connect.WithInterceptors(append(slices.Clone(d.opts.Interceptors), &edge{daemon: d})...),
	}
	services := []string{stasisv1connect.SystemServiceName, stasisv1connect.CheckpointServiceName}
	mux := http.NewServeMux()
	mux.Handle(stasisv1connect.NewSystemServiceHandler(&systemService{daemon: d}, options...))
	mux.Handle(stasisv1connect.NewCheckpointServiceHandler(&checkpointService{daemon: d}, append(options[:len(options):len(options)], d.lists.ready.Options())...))
	if d.jobs != nil {
		services = append(services, stasisv1connect.JobServiceName)
		mux.Handle(stasisv1connect.NewJobServiceHandler(d.jobs, append(options[:len(options):len(options)], d.jobs.Options())...))
	}
	mux.Handle(grpchealth.NewHandler(grpchealth.NewStaticChecker(services...), options...))
	reflector := grpcreflect.NewStaticReflector(append(services, grpchealth.HealthV1ServiceName)...)
	mux.Handle(grpcreflect.NewHandlerV1(reflector, options...))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector, options...))
	mux.Handle("GET /metrics", rootOnly(promhttp.HandlerFor(d.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: writeTimeout})))
	return d.guard(d.gate(mux))
}

func rootOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if who, ok := peer.From(r.Context()); !ok || !who.Root() {
			http.Error(w, "root only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// edge is where errors get their codes, and where calls are logged and counted.
type edge struct{ daemon *Daemon }

var _ connect.Interceptor = (*edge)(nil)

// WrapUnary is for calls with one answer.
func (e *edge) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		begun := time.Now()
		response, err := next(ctx, request)
		err = wire.Error(err)
		e.note(ctx, request.Spec(), begun, err)
		return response, err
	}
}

// WrapStreamingClient leaves clients alone.
func (e *edge) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is for calls with streams.
func (e *edge) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		begun := time.Now()
		err := wire.Error(next(ctx, conn))
		e.note(ctx, conn.Spec(), begun, err)
		return err
	}
}

func (e *edge) note(ctx context.Context, spec connect.Spec, begun time.Time, err error) {
	took, code := time.Since(begun), "ok"
	level := slog.LevelDebug
	if err != nil {
		code, level = connect.CodeOf(err).String(), slog.LevelWarn
	}
	e.daemon.calls.total.WithLabelValues(spec.Procedure, code).Inc()
	e.daemon.calls.seconds.WithLabelValues(spec.Procedure).Observe(took.Seconds())
	if !e.daemon.log.Enabled(ctx, level) {
		return
	}
	who, _ := peer.From(ctx)
	attributes := []any{"method", spec.Procedure, "peer", who.String(), "code", code, "took", took.Round(time.Microsecond)}
	if err != nil {
		attributes = append(attributes, "error", err)
	}
	e.daemon.log.Log(ctx, level, "call", attributes...)
}

// registerGauges adds what is looked up when Prometheus asks.
func (d *Daemon) registerGauges() {
	gauge := func(name, help string, get func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "stasis_" + name, Help: help}, get)
	}
	d.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("dumps_running", "Dumps under way.", func() float64 { n, _ := d.engine.Busy(); return float64(n) }),
		gauge("restores_running", "Restores under way.", func() float64 { _, n := d.engine.Busy(); return float64(n) }),
		gauge("checkpoints", "Checkpoints in the daemon's folder.", func() float64 { return float64(len(d.engine.Catalog.List())) }),
		gauge("checkpoint_bytes", "Bytes that they take.", func() float64 {
			var sum int64
			for _, e := range d.engine.Catalog.List() {
				sum += e.Bytes
			}
			return float64(sum)
		}),
		gauge("chain_length_max", "Checkpoints in the longest chain.", func() float64 {
			longest := int32(0)
			for _, n := range wire.ChainLengths(d.engine.Catalog.List()) {
				longest = max(longest, n)
			}
			return float64(longest)
		}),
		gauge("jobs", "Jobs.", func() float64 { all, _ := d.countJobs(0); return float64(all) }),
		gauge("jobs_running", "Jobs that run.", func() float64 { _, running := d.countJobs(0); return float64(running) }),
	)
}

func (d *Daemon) countJobs(uid uint32) (all, running int) {
	if d.jobs == nil {
		return 0, 0
	}
	return d.jobs.Counts(uid)
}
