package relay

import (
	"context"
	"errors"
	"strings"
	"testing"

	"stasis"
)

// A client that takes nothing does not hold up the work, which hears of one that has left.
func TestClientThatLeaves(t *testing.T) {
	gone := errors.New("gone")
	_, err := Progress(t.Context(), func(stasis.Progress) error { return gone }, func(ctx context.Context, report func(stasis.Progress)) (int, error) {
		for n := range 100 * maxQueue {
			report(stasis.Progress{Step: stasis.StepCopy, Round: n})
		}
		<-ctx.Done()
		return 0, context.Cause(ctx)
	})
	if !errors.Is(err, gone) {
		t.Errorf("the work ended with %v", err)
	}
}

// A panic of the work ends its call, as one of the call's own goroutine would, and not the whole program.
func TestPanicOfTheWork(t *testing.T) {
	defer func() {
		if p, ok := recover().(error); !ok || !strings.Contains(p.Error(), "oh no") {
			t.Errorf("it panicked with %v", p)
		}
	}()
	_, _ = Progress(t.Context(), func(stasis.Progress) error { return nil }, func(context.Context, func(stasis.Progress)) (int, error) { panic("oh no") })
	t.Error("it did not panic")
}

func TestAllIsSent(t *testing.T) {
	var sent []int
	got, err := Progress(t.Context(), func(p stasis.Progress) error { sent = append(sent, p.Round); return nil },
		func(_ context.Context, report func(stasis.Progress)) (string, error) {
			for n := range 3 {
				report(stasis.Progress{Step: stasis.StepCopy, Round: n})
			}
			return "done", nil
		})
	if err != nil || got != "done" || len(sent) != 3 || sent[2] != 2 {
		t.Errorf("%q, %v, sent %v", got, err, sent)
	}
}
