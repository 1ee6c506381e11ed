package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// Spans are the same on the other side: names, order, times, attributes and errors.
func TestSpansAreHandedBack(t *testing.T) {
	ctx, spans := noteSpans(t.Context())
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer("x")
	whole, outer := tracer.Start(ctx, "outer", trace.WithAttributes(attribute.Int("n", 1<<40), attribute.Bool("is", true), attribute.Float64("x", 1.5), attribute.String("s", "")))
	_, inner := tracer.Start(whole, "inner")
	inner.SetStatus(codes.Error, errors.New("no").Error())
	inner.End()
	outer.End()
	_, second := tracer.Start(ctx, "second")
	second.End()
	text, err := json.Marshal(spans())
	if err != nil {
		t.Fatal(err)
	}
	var back []Span
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	recorder := tracetest.NewSpanRecorder()
	ctx, above := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder)).Tracer("y").Start(t.Context(), "above")
	Replay(ctx, "v", back)
	names, parents := map[trace.SpanID]string{above.SpanContext().SpanID(): "above"}, map[string]string{}
	for _, s := range recorder.Ended() {
		names[s.SpanContext().SpanID()] = s.Name()
	}
	for i, s := range recorder.Ended() {
		parents[s.Name()] = names[s.Parent().SpanID()]
		if !s.StartTime().Equal(back[i].Start) || !s.EndTime().Equal(back[i].End) || s.EndTime().Before(s.StartTime()) {
			t.Errorf("%s: from %v to %v, want %+v", s.Name(), s.StartTime(), s.EndTime(), back[i])
		}
		switch s.Name() {
		case "outer":
			has := attribute.NewSet(s.Attributes()...)
			want := attribute.NewSet(attribute.Int("n", 1<<40), attribute.Bool("is", true), attribute.Float64("x", 1.5), attribute.String("s", ""))
			if !has.Equals(&want) {
				t.Errorf("attributes %v", s.Attributes())
			}
		case "inner":
			if s.Status().Code != codes.Error || s.Status().Description != "no" {
				t.Errorf("status %v", s.Status())
			}
		}
	}
	if want := map[string]string{"outer": "above", "inner": "outer", "second": "above"}; !reflect.DeepEqual(parents, want) {
		t.Errorf("parents %v, want %v", parents, want)
	}
}

// What a shim hands back is bounded, and what makes no sense harms nobody.
func TestManyAndOddSpans(t *testing.T) {
	ctx, spans := noteSpans(t.Context())
	tracer := trace.SpanFromContext(ctx).TracerProvider().Tracer("x")
	for i := range mostSpans + 10 {
		_, s := tracer.Start(ctx, fmt.Sprint(i))
		s.End()
	}
	if n := len(spans()); n != mostSpans {
		t.Errorf("%d spans", n)
	}
	recorder := tracetest.NewSpanRecorder()
	ctx, _ = sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder)).Tracer("y").Start(t.Context(), "above")
	odd := []Span{{Above: 1}, {Above: -7}, {Above: 2}, {Above: 1 << 40, Attributes: []Attribute{{}, {Key: "k"}}}}
	for len(odd) < 2*mostSpans {
		odd = append(odd, Span{Above: -1})
	}
	Replay(ctx, "v", odd)
	if n := len(recorder.Ended()); n != mostSpans {
		t.Errorf("%d spans", n)
	}
	Replay(context.Background(), "v", odd) // nobody listens
}
