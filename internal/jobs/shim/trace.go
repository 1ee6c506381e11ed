package shim

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// A shim sends no traces: it would have to know the collector, and its secrets, for as long as the job runs. It hands the spans of a restore back
// to the daemon with its answer, and that makes them part of the trace in which it has asked ([Replay]).

// Span is a piece of the work of a restore.
type Span struct {
	Name       string      `json:"name"`
	Above      int         `json:"above"` // index of the span that it is part of, which comes before it; -1: none
	Start      time.Time   `json:"start"`
	End        time.Time   `json:"end"`
	Failed     bool        `json:"failed,omitempty"`
	Error      string      `json:"error,omitempty"`
	Attributes []Attribute `json:"attributes,omitempty"`
}

// Attribute is one of a span's. Lists and other kinds are given as text.
type Attribute struct {
	Key    string   `json:"key"`
	Text   *string  `json:"text,omitempty"`
	Int    *int64   `json:"int,omitempty"`
	Bool   *bool    `json:"bool,omitempty"`
	Number *float64 `json:"number,omitempty"`
}

// mostSpans bounds what is handed back.
const mostSpans = 512

// noted keeps the spans that have ended.
type noted struct {
	mu   sync.Mutex
	list []sdk.ReadOnlySpan // guarded by mu
}

var _ sdk.SpanProcessor = (*noted)(nil)

// OnStart implements sdk.SpanProcessor.
func (*noted) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd implements sdk.SpanProcessor.
func (n *noted) OnEnd(s sdk.ReadOnlySpan) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.list) < mostSpans {
		n.list = append(n.list, s)
	}
}

// Shutdown implements sdk.SpanProcessor.
func (*noted) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdk.SpanProcessor.
func (*noted) ForceFlush(context.Context) error { return nil }

// noteSpans gives a context in which spans are noted, and what gives them when the work has ended.
func noteSpans(ctx context.Context) (_ context.Context, spans func() []Span) {
	kept := new(noted)
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(kept), sdk.WithSampler(sdk.AlwaysSample()), sdk.WithResource(resource.Empty()))
	ctx, above := provider.Tracer("stasis/shim").Start(ctx, "shim") // the daemon's own stands in its place
	return ctx, func() []Span {
		kept.mu.Lock()
		defer kept.mu.Unlock()
		return spansOf(kept.list, above.SpanContext().SpanID())
	}
}

// spansOf gives spans in the order in which they began, those below one span.
func spansOf(list []sdk.ReadOnlySpan, root trace.SpanID) []Span {
	// What began at the same time is in the order of its ends turned round: the outer one ends last.
	list = slices.Clone(list)
	slices.Reverse(list)
	slices.SortStableFunc(list, func(a, b sdk.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	index := map[trace.SpanID]int{root: -1}
	var spans []Span
	for _, s := range list {
		above, known := index[s.Parent().SpanID()]
		if !known {
			above = -1 // there was no room for it
		}
		index[s.SpanContext().SpanID()] = len(spans)
		one := Span{Name: s.Name(), Above: above, Start: s.StartTime(), End: s.EndTime(), Failed: s.Status().Code == codes.Error, Error: s.Status().Description}
		for _, a := range s.Attributes() {
			one.Attributes = append(one.Attributes, attributeOf(a))
		}
		spans = append(spans, one)
	}
	return spans
}

func attributeOf(a attribute.KeyValue) Attribute {
	to := Attribute{Key: string(a.Key)}
	switch a.Value.Type() {
	case attribute.INT64:
		n := a.Value.AsInt64()
		to.Int = &n
	case attribute.BOOL:
		is := a.Value.AsBool()
		to.Bool = &is
	case attribute.FLOAT64:
		x := a.Value.AsFloat64()
		to.Number = &x
	default:
		text := a.Value.String()
		to.Text = &text
	}
	return to
}

func (a *Attribute) keyValue() attribute.KeyValue {
	switch {
	case a.Int != nil:
		return attribute.Int64(a.Key, *a.Int)
	case a.Bool != nil:
		return attribute.Bool(a.Key, *a.Bool)
	case a.Number != nil:
		return attribute.Float64(a.Key, *a.Number)
	case a.Text != nil:
		return attribute.String(a.Key, *a.Text)
	}
	return attribute.String(a.Key, "")
}

// Replay makes a shim's spans part of the trace of the context, below its span. It does nothing where nobody listens.
func Replay(ctx context.Context, version string, spans []Span) {
	above := trace.SpanFromContext(ctx)
	if !above.IsRecording() {
		return
	}
	tracer := above.TracerProvider().Tracer("stasis", trace.WithInstrumentationVersion(version))
	contexts := make([]context.Context, 0, len(spans))
	for i, s := range spans[:min(len(spans), mostSpans)] {
		in := ctx
		if s.Above >= 0 && s.Above < i {
			in = contexts[s.Above]
		}
		below, span := tracer.Start(in, s.Name, trace.WithTimestamp(s.Start))
		for _, a := range s.Attributes {
			span.SetAttributes(a.keyValue())
		}
		if s.Failed {
			span.SetStatus(codes.Error, s.Error)
		}
		span.End(trace.WithTimestamp(cmp.Or(s.End, s.Start)))
		contexts = append(contexts, below)
	}
}
