package jobs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace/noop"

	"stasis/internal/jobs/db"
	"stasis/internal/require"
)

// A real restore is made by the job's shim, and all of its steps are in the trace of who has asked for it; so are those of one that fails.
func TestTraceOfARealRestore(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	recorder := tracetest.NewSpanRecorder()
	otel.SetTracerProvider(sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder)))
	t.Cleanup(func() { otel.SetTracerProvider(noop.NewTracerProvider()) })
	m := openReal(t, t.TempDir(), nil)
	spec := counting()
	spec.Name, spec.Restart = "traced", db.RestartNever
	info, err := m.Run(t.Context(), spec, 0)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the job prints", func() bool { last, _ := counted(t, m, "traced"); return last > 2 })
	dumped, err := m.Dump(t.Context(), info.Spec.Name, DumpRequest{})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	ctx, above := otel.Tracer("test").Start(t.Context(), "asked")
	done, err := m.Restore(ctx, "traced", RestoreRequest{})
	above.End()
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Restored.Spans) == 0 {
		t.Fatal("the shim hands back no spans")
	}
	spans, parents := map[string]sdk.ReadOnlySpan{}, map[string]string{}
	read := func() {
		names := map[string]string{}
		for _, s := range recorder.Ended() {
			spans[s.Name()], names[s.SpanContext().SpanID().String()] = s, s.Name()
		}
		for name, s := range spans {
			parents[name] = names[s.Parent().SpanID().String()]
		}
	}
	read()
	for name, want := range map[string]string{
		"job.restore": "asked", "stasis.restore": "job.restore", "restore.open": "stasis.restore", "restore.check": "stasis.restore",
		"restore.unpack": "stasis.restore", "restore.restore": "stasis.restore", "restore.fill": "restore.restore",
	} {
		s := spans[name]
		if s == nil || parents[name] != want {
			t.Errorf("%s is below %q, want %q", name, parents[name], want)
			continue
		}
		if s.SpanContext().TraceID() != above.SpanContext().TraceID() {
			t.Errorf("%s is in another trace", name)
		}
		if s.StartTime().Before(begun) || s.EndTime().Before(s.StartTime()) || s.EndTime().After(time.Now()) {
			t.Errorf("%s was from %v to %v, asked at %v", name, s.StartTime(), s.EndTime(), begun)
		}
	}
	pid := int64(0)
	for _, a := range spans["stasis.restore"].Attributes() {
		if a.Key == "stasis.pid" {
			pid = a.Value.AsInt64()
		}
	}
	if pid != int64(done.PID) {
		t.Errorf("stasis.pid is %d, want %d", pid, done.PID)
	}

	recorder.Reset()
	clear(spans)
	if _, err := m.Kill(t.Context(), "traced", 9, true); err != nil {
		t.Fatal(err)
	}
	shard := filepath.Join(dumped.Dir, "img-0")
	if err := os.Truncate(shard, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Restore(t.Context(), "traced", RestoreRequest{}); err == nil {
		t.Fatal("a damaged checkpoint was restored")
	}
	read()
	if s := spans["stasis.restore"]; s == nil || parents["stasis.restore"] != "job.restore" || s.Status().Code != codes.Error {
		t.Errorf("of a restore that failed: %v, below %q", s, parents["stasis.restore"])
	}
}
