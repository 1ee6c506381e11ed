package cli

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"stasis"
)

// A command has a span, which is sent before it ends, and the library's spans are below it. Without the setting there is nothing.
func TestTracesOfCommands(t *testing.T) {
	received := make(chan *collectorv1.ExportTraceServiceRequest, 10)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		request := new(collectorv1.ExportTraceServiceRequest)
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(body, request)
		}
		if err != nil {
			t.Error(err)
		}
		received <- request
	}))
	defer collector.Close()
	b := newBench(t)
	dump := b.dump
	b.dump = func(ctx context.Context, o stasis.DumpOptions) (*stasis.DumpResult, error) {
		_, span := otel.Tracer("test").Start(ctx, "library")
		defer span.End()
		return dump(ctx, o)
	}
	b.environ = append(b.environ, "STASIS_TRACE_COLLECTOR=off")
	b.says(exitOK, []string{"dump", "process", "4711"})
	if len(received) != 0 {
		t.Fatal("spans were sent")
	}
	b.environ[len(b.environ)-1] = "STASIS_TRACE_COLLECTOR=" + collector.URL
	b.says(exitOK, []string{"dump", "process", "4711"})
	if len(received) != 1 {
		t.Fatalf("%d requests came before the command had ended: %s", len(received), b.err.String())
	}
	spans := (<-received).GetResourceSpans()[0].GetScopeSpans()
	ids, parents := map[string]string{}, map[string]string{}
	for _, scope := range spans {
		for _, s := range scope.GetSpans() {
			ids[s.GetName()], parents[s.GetName()] = string(s.GetSpanId()), string(s.GetParentSpanId())
		}
	}
	if len(ids) != 2 || parents["stasis dump process"] != "" || parents["library"] == "" || parents["library"] != ids["stasis dump process"] {
		t.Errorf("spans %q below %q", ids, parents)
	}
	b.environ[len(b.environ)-1] = "STASIS_TRACE_COLLECTOR=localhost"
	b.says(exitInput, []string{"version"}, "http://localhost:4318")
	collector.Close()
	b.environ[len(b.environ)-1] = "STASIS_TRACE_COLLECTOR=" + collector.URL
	b.says(exitOK, []string{"dump", "process", "4711"}, "the collector of traces does not take them")
}
