package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"

	"stasis/internal/config"
)

// lines keeps what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.FieldsFunc(l.text.String(), func(r rune) bool { return r == '\n' })
}

func begin(t *testing.T, collector string) (*Tracing, *lines) {
	t.Helper()
	log := new(lines)
	// The flush is bounded by the test, where it matters.
	return Start(Options{Collector: collector, Version: "test", Flush: 20 * time.Second, Log: slog.New(slog.NewTextHandler(log, nil))}), log
}

// spans makes so many.
func spans(n int) {
	for range n {
		_, span := otel.Tracer("test").Start(context.Background(), "work")
		span.End()
	}
}

// clear takes away what the environment of the tests may say.
func clearVariables(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
		"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_TRACES_SAMPLER", "HTTP_PROXY", "http_proxy",
	} {
		t.Setenv(name, "")
	}
}

func TestWhoAsksForTraces(t *testing.T) {
	const url = "http://127.0.0.1:1"
	for _, c := range []struct {
		collector string
		variables map[string]string
		on        bool
		says      string
	}{
		{collector: config.TraceAuto},
		{collector: config.TraceAuto, variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url}, on: true},
		{collector: config.TraceAuto, variables: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url}, on: true},
		{collector: config.TraceAuto, variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SDK_DISABLED": "true"}},
		{collector: config.TraceAuto, variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_EXPORTER": "none"}},
		{collector: config.TraceAuto, variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_EXPORTER": "zipkin"}, says: "only otlp"},
		{collector: config.TraceAuto, variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, says: "4318"},
		{collector: config.TraceOff, variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url}},
		{collector: url, on: true},
	} {
		t.Run(fmt.Sprint(c.collector, c.variables), func(t *testing.T) {
			clearVariables(t)
			for name, value := range c.variables {
				t.Setenv(name, value)
			}
			traces, log := begin(t, c.collector)
			if (traces != nil) != c.on || (traces.Interceptors() != nil) != c.on {
				t.Errorf("on: %v", traces != nil)
			}
			traces.Stop() // also of none
			if text := strings.Join(log.list(), "\n"); c.says == "" && text != "" || !strings.Contains(text, c.says) {
				t.Errorf("logged %q, want %q", text, c.says)
			}
		})
	}
}

// Without a collector nothing waits, and one line says so, however many spans there are.
func TestNobodyTakesThem(t *testing.T) {
	clearVariables(t)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "1") // ms
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil { // nobody listens there now
		t.Fatal(err)
	}
	traces, log := begin(t, "http://"+address)
	for range 20 {
		spans(1000)
		if err := traces.provider.ForceFlush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	traces.Stop()
	if said := log.list(); len(said) != 1 || !strings.Contains(said[0], "nothing else is affected") {
		t.Errorf("logged %d lines: %q", len(said), said)
	}
}

// A collector that takes the connection and never answers holds up neither those who make spans nor, for longer than it may, the end.
func TestNobodyAnswers(t *testing.T) {
	clearVariables(t)
	for _, limit := range []string{"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_BSP_EXPORT_TIMEOUT"} {
		t.Setenv(limit, "3600000") // ms
	}
	asked, never := make(chan struct{}, 100), make(chan struct{})
	deaf := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-never
	}))
	defer deaf.Close()
	defer close(never)
	traces, log := begin(t, deaf.URL)
	traces.flush = 50 * time.Millisecond
	done := make(chan struct{})
	go func() {
		defer close(done)
		spans(100_000) // many times what the queue holds
		<-asked
		spans(100_000)
		traces.Stop()
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Fatal("somebody waits for the collector")
	}
	if said := log.list(); len(said) == 0 || len(said) > 2 {
		t.Errorf("logged %d lines: %q", len(said), said)
	}
}

// One that was away is told of once each time.
func TestCollectorComesBack(t *testing.T) {
	clearVariables(t)
	var mu sync.Mutex
	away, took := true, 0
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if away {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		took++
	}))
	defer receiver.Close()
	traces, log := begin(t, receiver.URL)
	flush := func() {
		spans(3)
		if err := traces.provider.ForceFlush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	flush()
	flush()
	mu.Lock()
	away = false
	mu.Unlock()
	flush()
	flush()
	traces.Stop()
	if said := log.list(); len(said) != 2 || !strings.Contains(said[1], "dropped=6") || took != 2 {
		t.Errorf("logged %q, and %d requests were taken", said, took)
	}
}
