package stasis

import (
	"context"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Dumps and restores make spans of OpenTelemetry as libraries do: where the
// context has a span, below it and by its provider, else by the provider that the
// program has set for itself (otel.SetTracerProvider). Where nobody listens,
// nothing is noted.
//
//	stasis.dump, stasis.pre-dump
//	  dump.prepare, dump.arm, dump.copy …   each step, by its name
//	    dump.round                          a copy of memory, below dump.copy
//	  dump.pause                            while the tree stands still
//	    dump.freeze, dump.criu, dump.state  dump.criu: CRIU dumps the state, and the last copy runs beside it
//	stasis.restore
//	  restore.open, restore.check …         each step, by its name
//
// Attributes are numbers, ids and names of methods; never a process' arguments,
// its environment or its memory. The text of an error is that which callers get:
// it can name a program and files.
const tracerName = "stasis"

// spans are those of one dump or restore that are open. They belong to one
// goroutine at a time. nil has none.
type spans struct {
	tracer trace.Tracer
	open   []trace.Span // the innermost last
}

// beginSpans begins the span of the whole.
func beginSpans(ctx context.Context, name string, attributes ...attribute.KeyValue) *spans {
	provider := otel.GetTracerProvider()
	if above := trace.SpanFromContext(ctx); above.IsRecording() {
		provider = above.TracerProvider()
	}
	tracer := provider.Tracer(tracerName, trace.WithInstrumentationVersion(Version))
	_, span := tracer.Start(ctx, name, trace.WithAttributes(attributes...))
	if !span.IsRecording() {
		return nil
	}
	return &spans{tracer: tracer, open: []trace.Span{span}}
}

// begin begins a span below the innermost one.
func (s *spans) begin(name string, attributes ...attribute.KeyValue) {
	if s == nil {
		return
	}
	above := trace.ContextWithSpan(context.Background(), s.open[len(s.open)-1])
	_, span := s.tracer.Start(above, name, trace.WithAttributes(attributes...))
	s.open = append(s.open, span)
}

// end ends the innermost span.
func (s *spans) end(err error, attributes ...attribute.KeyValue) {
	if s != nil {
		s.endTo(len(s.open)-1, time.Now(), err, attributes...)
	}
}

// endTo ends spans until so many are open; the attributes are of the outermost
// of them. What a failure has left open ends with that.
func (s *spans) endTo(open int, at time.Time, err error, attributes ...attribute.KeyValue) {
	for s != nil && len(s.open) > open {
		last := len(s.open) - 1
		span := s.open[last]
		s.open = s.open[:last]
		if last == open {
			span.SetAttributes(attributes...)
		}
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
			span.SetAttributes(attribute.String("stasis.failed_step", string(FailedStep(err))))
		}
		span.End(trace.WithTimestamp(at))
	}
}

// spansBelow is how many spans are open outside of those of a pause: that of the
// whole.
const spansBelow = 1

// dumpSpans begins the spans of a dump.
func (d *dump) dumpSpans(ctx context.Context) {
	name := "stasis.dump"
	if d.preDump {
		name = "stasis.pre-dump"
	}
	d.spans = beginSpans(ctx, name, attribute.Int("stasis.pid", d.opts.PID), attribute.Bool("stasis.again", d.exact))
}

// endPause ends the spans of the freeze when it is known how long it took.
func (d *dump) endPause() {
	if d.spans != nil {
		d.spans.endTo(spansBelow, d.thawed, nil,
			attribute.Int64("stasis.pause_us", d.pausedFor().Microseconds()),
			attribute.Int("stasis.round", d.round), attribute.Int64("stasis.bytes", d.dirty.Bytes))
	}
}

// endSpans ends the spans of a dump.
func (d *dump) endSpans(err error) {
	if d.spans == nil {
		return
	}
	attributes := []attribute.KeyValue{
		attribute.String("stasis.engine", string(d.engine)), attribute.String("stasis.tracker", string(d.trackerKind)),
		attribute.String("stasis.compression", d.opts.Compression), attribute.Int("stasis.streams", d.opts.Streams),
		attribute.String("stasis.after", string(d.opts.After)),
	}
	if m := d.manifest; m != nil {
		f := &m.Figures
		attributes = append(attributes,
			attribute.String("stasis.checkpoint.id", m.ID), attribute.String("stasis.checkpoint.parent", m.Parent),
			attribute.Int("stasis.checkpoint.depth", m.Depth), attribute.Int("stasis.processes", len(m.Processes)),
			attribute.Int64("stasis.pause_us", f.PauseUS), attribute.Int("stasis.rounds", len(f.Rounds)),
			attribute.Int64("stasis.bytes_memory", f.BytesMemory), attribute.Int64("stasis.bytes_stored", f.BytesStored),
			attribute.Int64("stasis.bytes_referenced", f.BytesReferenced))
	}
	d.spans.endTo(0, time.Now(), err, attributes...)
}

// endSpans ends the spans of a restore.
func (r *restore) endSpans(err error) {
	if r.spans == nil {
		return
	}
	attributes := []attribute.KeyValue{attribute.Bool("stasis.lazy", r.opts.Lazy), attribute.Int("stasis.pid", r.result.PID)}
	if r.checkpoint != nil {
		m := r.checkpoint.Manifest()
		attributes = append(attributes, attribute.String("stasis.checkpoint.id", m.ID), attribute.Int("stasis.checkpoint.depth", m.Depth),
			attribute.Int("stasis.processes", len(m.Processes)), attribute.Int64("stasis.bytes_memory", r.result.BytesMemory),
			attribute.Int64("stasis.resume_us", r.result.ToResume.Microseconds()))
	}
	r.spans.endTo(0, time.Now(), err, attributes...)
}
