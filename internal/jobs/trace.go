package jobs

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"stasis/internal/jobs/shim"
)

// The spans of jobs, below that of the call that asked for it, or the first of their trace where the schedule did, or a crash:
//
//	job.dump        a checkpoint, with the wait for a turn; the library's stasis.dump is below it
//	job.bring_back  all attempts after a crash, with those below it
//	job.restore     one restore; stasis.restore, which the shim makes, is below it
//	job.start       one start from the beginning
//
// They name the job, and never its command: a start that fails does not say what was to be started.

// errNotStarted stands for errors that name the command.
var errNotStarted = errors.New("the command could not be started")

// startSpan begins the span of a start.
func (j *job) startSpan(ctx context.Context) (_ context.Context, end func(now *shim.Status, err error)) {
	ctx, endAny := j.span(ctx, "job.start")
	return ctx, func(now *shim.Status, err error) {
		if err != nil {
			err = errNotStarted
		}
		endAny(err, attribute.Int("stasis.pid", now.PID))
	}
}

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
