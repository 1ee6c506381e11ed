package jobs

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace/noop"

	"stasis/internal/jobs/db"
)

// A checkpoint on schedule begins a trace, and so does a crash: what follows from it is below it.
func TestTraces(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	otel.SetTracerProvider(sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder)))
	t.Cleanup(func() { otel.SetTracerProvider(noop.NewTracerProvider()) })
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := w.open(t, dir, nil)
		info := run(t, m, db.Spec{Name: "traced", Every: time.Minute, Restart: db.RestartOnFailure, Argv: []string{"secret"}})
		time.Sleep(90 * time.Second) //nolint:forbidigo // in the bubble
		synctest.Wait()
		w.byPID(info.PID).end(&db.Exit{Code: -1, Signal: syscall.SIGKILL.String()})
		synctest.Wait()
		closeManager(t, m)
	})
	spans, names := map[string]sdk.ReadOnlySpan{}, map[string]string{}
	for _, s := range recorder.Ended() {
		spans[s.Name()], names[s.SpanContext().SpanID().String()] = s, s.Name()
	}
	for name, want := range map[string]struct {
		parent     string
		attributes []attribute.KeyValue
	}{
		"job.start":      {attributes: []attribute.KeyValue{attribute.String("stasis.job.name", "traced")}},
		"job.dump":       {attributes: []attribute.KeyValue{attribute.String("stasis.reason", ReasonSchedule), attribute.Int64("stasis.checkpoint.seq", 1)}},
		"job.bring_back": {attributes: []attribute.KeyValue{attribute.Int("stasis.attempts", 1), attribute.String("stasis.job.state", "running")}},
		"job.restore":    {parent: "job.bring_back", attributes: []attribute.KeyValue{attribute.Int64("stasis.checkpoint.seq", 1)}},
	} {
		s := spans[name]
		if s == nil {
			t.Errorf("there is no span %s", name)
			continue
		}
		if parent := names[s.Parent().SpanID().String()]; parent != want.parent {
			t.Errorf("%s is below %q", name, parent)
		}
		has := attribute.NewSet(s.Attributes()...)
		for _, a := range want.attributes {
			if value, ok := has.Value(a.Key); !ok || value != a.Value {
				t.Errorf("%s has %s=%v, want %v", name, a.Key, value.String(), a.Value.String())
			}
		}
		for _, a := range s.Attributes() {
			if a.Value.String() == "secret" {
				t.Errorf("%s tells the command", name)
			}
		}
	}
}
