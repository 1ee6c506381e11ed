package engine

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"stasis"
)

// figures are what Prometheus gets of dumps and restores.
type figures struct {
	dumps, restores          *prometheus.CounterVec // by kind and result
	pause, took, rate        *prometheus.HistogramVec
	resume, restore          prometheus.Histogram
	memory, stored, referred prometheus.Counter
}

func newFigures(registry prometheus.Registerer) *figures {
	seconds := func(name, help string, from float64, n int) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: "stasis_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(from, 2, n)}
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "stasis_" + name, Help: help})
	}
	f := &figures{
		dumps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stasis_dumps_total", Help: "Dumps that have ended, by kind (dump, pre-dump) and result (ok, failed).",
		}, []string{"kind", "result"}),
		restores: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stasis_restores_total", Help: "Restores that have ended, by result (ok, failed).",
		}, []string{"result"}),
		pause: prometheus.NewHistogramVec(seconds("dump_pause_seconds", "How long processes stood still for a dump.", 0.001, 14), []string{"kind"}),
		took:  prometheus.NewHistogramVec(seconds("dump_seconds", "How long dumps took, from the start to the durable checkpoint.", 0.01, 16), []string{"kind"}),
		rate: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "stasis_dump_bytes_per_second", Help: "Memory in a checkpoint by the time that it took.", Buckets: prometheus.ExponentialBuckets(1<<20, 2, 14),
		}, []string{"kind"}),
		resume:   prometheus.NewHistogram(seconds("restore_resume_seconds", "Until restored processes ran.", 0.01, 14)),
		restore:  prometheus.NewHistogram(seconds("restore_seconds", "Until all memory of restored processes was in place.", 0.01, 16)),
		memory:   counter("dump_memory_bytes_total", "Memory in the checkpoints that were made."),
		stored:   counter("dump_stored_bytes_total", "Bytes that were written for them."),
		referred: counter("dump_referenced_bytes_total", "Memory in them that was not stored again, because their parents have it."),
	}
	registry.MustRegister(f.dumps, f.restores, f.pause, f.took, f.rate, f.resume, f.restore, f.memory, f.stored, f.referred)
	// Rates of failures need the zero as well.
	for _, result := range []string{"ok", "failed"} {
		f.restores.WithLabelValues(result)
		for _, kind := range []string{"dump", "pre-dump"} {
			f.dumps.WithLabelValues(kind, result)
		}
	}
	return f
}

func (f *figures) dumped(kind string, result *stasis.DumpResult, took time.Duration, err error) {
	if err != nil {
		f.dumps.WithLabelValues(kind, "failed").Inc()
		return
	}
	g := &result.Manifest.Figures
	f.dumps.WithLabelValues(kind, "ok").Inc()
	f.pause.WithLabelValues(kind).Observe((time.Duration(g.PauseUS) * time.Microsecond).Seconds())
	f.took.WithLabelValues(kind).Observe(took.Seconds())
	if took > 0 {
		f.rate.WithLabelValues(kind).Observe(float64(g.BytesMemory) / took.Seconds())
	}
	f.memory.Add(float64(g.BytesMemory))
	f.stored.Add(float64(g.BytesStored))
	f.referred.Add(float64(g.BytesReferenced))
}

func (f *figures) restored(result *stasis.RestoreResult, err error) {
	if err != nil {
		f.restores.WithLabelValues("failed").Inc()
		return
	}
	f.restores.WithLabelValues("ok").Inc()
	f.resume.Observe(result.ToResume.Seconds())
	f.restore.Observe(result.Took.Seconds())
}
