// Package relay sends the progress of a long piece of work to a client that may be slow, or gone, without ever holding up the work.
//
// [Progress] may be called from several goroutines at once.
package relay

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"stasis"
)

// every is the pause between two messages of progress of the same step.
const every = 50 * time.Millisecond

// mailbox holds progress until the client can take it. It is bounded: of each step and round only the newest is kept, and of many
// rounds only the newest few.
type mailbox struct {
	mu    sync.Mutex
	queue []stasis.Progress // guarded by mu
	wake  chan struct{}
}

const maxQueue = 64

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

// put never waits.
func (m *mailbox) put(p stasis.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.queue); n > 0 && m.queue[n-1].Step == p.Step && m.queue[n-1].Round == p.Round {
		m.queue[n-1] = p
	} else {
		m.queue = append(m.queue, p)
	}
	if len(m.queue) > maxQueue {
		m.queue = append(m.queue[:0], m.queue[1:]...)
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() []stasis.Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := m.queue
	m.queue = nil
	return taken
}

// Progress does some work and sends its progress meanwhile. The work never waits for the client: when sending fails, because the
// client has left or takes nothing any more, the work is cancelled, and Progress waits for its end. Where the work panics, Progress
// does.
func Progress[T any](ctx context.Context, send func(stasis.Progress) error, work func(context.Context, func(stasis.Progress)) (T, error)) (T, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	box, done := newMailbox(), make(chan struct{})
	var result T
	var err error
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil { // nobody above this goroutine would
				err = &panicError{value: p, stack: debug.Stack()}
			}
		}()
		result, err = work(ctx, box.put)
	}()
	pause := time.NewTicker(every)
	defer pause.Stop()
	for working := true; working; {
		select {
		case <-done:
			working = false
		case <-box.wake:
		}
		for _, p := range box.take() {
			if sendErr := send(p); sendErr != nil {
				cancel(sendErr)
				<-done
				return result, err
			}
		}
		if working {
			select {
			case <-done:
			case <-pause.C:
			}
		}
	}
	if p := (*panicError)(nil); errors.As(err, &p) {
		panic(p)
	}
	return result, err
}

// panicError carries a panic to the goroutine of its call, where it is logged.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("%v\n%s", e.value, e.stack) }
