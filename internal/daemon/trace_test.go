package daemon

import (
	"compress/gzip"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/attribute"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	v1 "stasis/api/stasis/v1"
	"stasis/internal/require"
	"stasis/internal/tracing"
)

// collector receives traces as OTLP over HTTP has them.
type collector struct {
	*httptest.Server

	mu    sync.Mutex
	raw   []byte          // guarded by mu; all that was received
	spans []*tracev1.Span // guarded by mu
}

func collect(t *testing.T) *collector {
	t.Helper()
	c := new(collector)
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			unpacked, err := gzip.NewReader(body)
			if err != nil {
				t.Error(err)
				return
			}
			body = unpacked
		}
		text, err := io.ReadAll(body)
		var request collectorv1.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(text, &request)
		}
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %s of %s: %v", r.Method, r.URL, r.Header.Get("Content-Type"), err)
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.raw = append(c.raw, text...)
		for _, resource := range request.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				c.spans = append(c.spans, scope.GetSpans()...)
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// family is the spans of one trace by their names, and each one's parent by the name of the parent.
type family struct {
	spans   map[string][]*tracev1.Span
	parents map[string]string
}

func (c *collector) trace(t *testing.T, id string) *family {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	f, names := &family{map[string][]*tracev1.Span{}, map[string]string{}}, map[string]string{}
	var mine []*tracev1.Span
	for _, s := range c.spans {
		if strings.EqualFold(id, hexOf(s.GetTraceId())) {
			names[string(s.GetSpanId())] = s.GetName()
			mine = append(mine, s)
		}
	}
	for _, s := range mine {
		f.spans[s.GetName()] = append(f.spans[s.GetName()], s)
		f.parents[s.GetName()] = names[string(s.GetParentSpanId())]
		if s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano() {
			t.Errorf("%s ends before it begins", s.GetName())
		}
	}
	return f
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var text strings.Builder
	for _, c := range b {
		text.WriteByte(digits[c>>4])
		text.WriteByte(digits[c&15])
	}
	return text.String()
}

// number is an attribute of the only span of that name.
func (f *family) number(t *testing.T, span, key string) int64 {
	t.Helper()
	value, ok := f.values(t, span)[key]
	if !ok || value.Type() != attribute.INT64 {
		t.Errorf("%s has no number %s", span, key)
	}
	return value.AsInt64()
}

func (f *family) values(t *testing.T, span string) map[string]attribute.Value {
	t.Helper()
	list := f.spans[span]
	if len(list) == 0 {
		t.Errorf("there is no span %s", span)
		return nil
	}
	values := map[string]attribute.Value{}
	for _, a := range list[len(list)-1].GetAttributes() {
		switch v := a.GetValue(); {
		case v.GetStringValue() != "":
			values[a.GetKey()] = attribute.StringValue(v.GetStringValue())
		default:
			values[a.GetKey()] = attribute.Int64Value(v.GetIntValue())
		}
	}
	return values
}

// A real dump and a real restore, asked for by a caller with a trace of its own, are in that trace with all of their steps.
func TestTraces(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	receiver := collect(t)
	var traces *tracing.Tracing
	b := serve(t, func(o *Options) {
		traces = tracing.Start(tracing.Options{Collector: receiver.URL, Version: "test", Flush: 20 * time.Second, Log: o.Log})
		o.Interceptors = traces.Interceptors()
	})
	if traces == nil {
		t.Fatal("no traces")
	}
	c, pid := b.checkpoints(t, 0), sleeper(t, 0)
	const dumpTrace, restoreTrace, failedTrace = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c", "2af7651916cd43dd8448eb211c80319c"
	const killTrace = "3af7651916cd43dd8448eb211c80319c"

	dump := connect.NewRequest(&v1.DumpRequest{Pid: int32(pid), Name: "traced", After: v1.After_AFTER_RUN})
	dump.Header().Set("Traceparent", "00-"+dumpTrace+"-b7ad6b7169203331-01")
	stream, err := c.Dump(t.Context(), dump)
	result, _, err := dumped(t, stream, err)
	if err != nil {
		t.Fatal(err)
	}
	kill := connect.NewRequest(&v1.DumpRequest{Pid: int32(pid), Name: "last", After: v1.After_AFTER_KILL})
	kill.Header().Set("Traceparent", "00-"+killTrace+"-b7ad6b7169203331-01")
	stream, err = c.Dump(t.Context(), kill)
	if _, _, err := dumped(t, stream, err); err != nil {
		t.Fatal(err)
	}
	again := connect.NewRequest(&v1.RestoreRequest{Checkpoint: "last"})
	again.Header().Set("Traceparent", "00-"+restoreTrace+"-b7ad6b7169203331-01")
	restore, err := c.Restore(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	for restore.Receive() {
	}
	if restore.Err() != nil {
		t.Fatal(restore.Err())
	}
	failing := connect.NewRequest(&v1.DumpRequest{Pid: int32(pid), Name: "traced"})
	failing.Header().Set("Traceparent", "00-"+failedTrace+"-b7ad6b7169203331-01")
	stream, err = c.Dump(t.Context(), failing)
	if _, _, err := dumped(t, stream, err); err == nil {
		t.Fatal("a second dump of that name")
	}
	traces.Stop()

	f := receiver.trace(t, dumpTrace)
	const call = "stasis.v1.CheckpointService/Dump"
	want := map[string]string{
		call: "", "stasis.dump": call,
		"dump.prepare": "stasis.dump", "dump.arm": "stasis.dump", "dump.copy": "stasis.dump", "dump.round": "dump.copy", "dump.pause": "stasis.dump",
		"dump.freeze": "dump.pause", "dump.criu": "dump.pause", "dump.state": "dump.pause", "dump.write": "stasis.dump", "dump.publish": "stasis.dump",
	}
	if !maps.Equal(f.parents, want) {
		t.Errorf("parents are %v, want %v", f.parents, want)
	}
	if s := f.spans[call]; len(s) != 1 || hexOf(s[0].GetParentSpanId()) != "b7ad6b7169203331" || s[0].GetKind() != tracev1.Span_SPAN_KIND_SERVER {
		t.Errorf("the call's span: %v", s)
	}
	figures := result.GetCheckpoint().GetFigures()
	if got := f.number(t, "stasis.dump", "stasis.pid"); got != int64(pid) {
		t.Errorf("pid %d", got)
	}
	if got := f.number(t, "stasis.dump", "stasis.bytes_memory"); got != figures.GetBytesMemory() || got == 0 {
		t.Errorf("%d bytes of memory, and the figures have %d", got, figures.GetBytesMemory())
	}
	for _, span := range []string{"stasis.dump", "dump.pause"} {
		if got := f.number(t, span, "stasis.pause_us"); got != figures.GetPause().AsDuration().Microseconds() || got == 0 {
			t.Errorf("%s has a pause of %d µs, and the figures have %d", span, got, figures.GetPause().AsDuration().Microseconds())
		}
	}
	rounds := f.spans["dump.round"]
	var numbers []int64
	var copied int64
	for _, r := range rounds {
		for _, a := range r.GetAttributes() {
			switch a.GetKey() {
			case "stasis.round":
				numbers = append(numbers, a.GetValue().GetIntValue())
			case "stasis.bytes":
				copied += a.GetValue().GetIntValue()
			}
		}
	}
	if slices.Sort(numbers); len(rounds) == 0 || len(numbers) != len(rounds) || numbers[0] != 0 || numbers[len(numbers)-1] != int64(len(rounds))-1 || copied == 0 {
		t.Errorf("rounds %v with %d bytes", numbers, copied)
	}
	if id := f.values(t, "stasis.dump")["stasis.checkpoint.id"]; id.AsString() != result.GetCheckpoint().GetId() {
		t.Errorf("checkpoint %v", id)
	}

	f = receiver.trace(t, killTrace)
	want["dump.end"] = "stasis.dump"
	if !maps.Equal(f.parents, want) {
		t.Errorf("parents are %v, want %v", f.parents, want)
	}

	f = receiver.trace(t, restoreTrace)
	for _, name := range []string{"restore.open", "restore.check", "restore.unpack", "restore.restore"} {
		if f.parents[name] != "stasis.restore" {
			t.Errorf("%s is below %q", name, f.parents[name])
		}
	}
	if f.parents["restore.fill"] != "restore.restore" || f.parents["stasis.restore"] != "stasis.v1.CheckpointService/Restore" {
		t.Errorf("parents are %v", f.parents)
	}
	if got := f.number(t, "stasis.restore", "stasis.pid"); got != int64(pid) {
		t.Errorf("pid %d", got)
	}

	f = receiver.trace(t, failedTrace)
	for _, name := range []string{call, "stasis.dump", "dump.prepare"} {
		if s := f.spans[name]; len(s) != 1 || name != call && s[0].GetStatus().GetCode() != tracev1.Status_STATUS_CODE_ERROR {
			t.Errorf("of the dump that failed: %s %v", name, s)
		}
	}
	if step := f.values(t, "stasis.dump")["stasis.failed_step"]; step.AsString() != "prepare" {
		t.Errorf("it failed at %q", step.AsString())
	}

	// "sleep 1000" with LC_ALL=C, and nothing of it is anybody's business.
	for _, secret := range []string{"sleep", "1000\x00", "LC_ALL"} {
		if strings.Contains(string(receiver.raw), secret) {
			t.Errorf("the traces tell %q", secret)
		}
	}
	if strings.Contains(b.log.String(), "collector") {
		t.Errorf("the log complains:\n%s", b.log)
	}
}
