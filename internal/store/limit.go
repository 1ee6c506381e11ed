package store

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"
)

// Limit makes a Target that is written at most so many bytes a second, all files together; a short burst of a tenth of a second is
// let through. Waiting ends, with an error, when the context does.
func Limit(ctx context.Context, t Target, bytesPerSecond int64) Target {
	burst := int(min(max(bytesPerSecond/10, 4096), 64<<20))
	return &limited{Target: t, ctx: ctx, limiter: rate.NewLimiter(rate.Limit(bytesPerSecond), burst)}
}

type limited struct {
	Target
	ctx     context.Context //nolint:containedctx // the Target is one call's
	limiter *rate.Limiter
}

// Create starts a file; what is written to it counts.
func (t *limited) Create(name string) (Writer, error) {
	w, err := t.Target.Create(name)
	if err != nil {
		return nil, err
	}
	slow := &limitedWriter{Writer: w, target: t}
	if again, ok := w.(Rereader); ok {
		return &limitedRereader{slow, again}, nil
	}
	return slow, nil
}

type limitedWriter struct {
	Writer
	target *limited
}

// limitedRereader can be read back as well: what is published is checked first.
type limitedRereader struct {
	*limitedWriter
	Rereader
}

var _ Rereader = (*limitedRereader)(nil)

func (w *limitedWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, w.target.limiter.Burst())
		if err := w.target.limiter.WaitN(w.target.ctx, n); err != nil {
			return done, fmt.Errorf("wait for the limit of bandwidth: %w", err)
		}
		wrote, err := w.Writer.Write(p[done : done+n])
		done += wrote
		if err != nil {
			return done, err //nolint:wrapcheck // it is the Writer's
		}
	}
	return done, nil
}
