package jobs

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// The spans of jobs, below that of the call that asked for it, or the first of their trace where the schedule did, or a crash:
//
//	job.dump        a checkpoint, with the wait for a turn; the library's stasis.dump is below it
//	job.bring_back  all attempts after a crash, with those below it
//	job.restore     one restore, which the shim makes
//	job.start       one start from the beginning
//
// They name the job, and never its command.

// span begins a span of a job. end takes what came of it.
func (j *job) span(ctx context.Context, name string, attributes ...attribute.KeyValue) (_ context.Context, end func(error, ...attribute.KeyValue)) {
	ctx, span := otel.Tracer("stasis/jobs").Start(ctx, name)
	if !span.IsRecording() {
		return ctx, func(error, ...attribute.KeyValue) {}
	}
	span.SetAttributes(attribute.String("stasis.job.name", j.name()), attribute.String("stasis.job.id", j.rec.ID))
	span.SetAttributes(attributes...)
	return ctx, func(err error, attributes ...attribute.KeyValue) { endSpan(span, err, attributes) }
}

func endSpan(span trace.Span, err error, attributes []attribute.KeyValue) {
	span.SetAttributes(attributes...)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
