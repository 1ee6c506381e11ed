package jobs

import (
	"context"
	"iter"
	"sync"
	"time"

	"stasis/internal/jobs/db"
)

// The kinds of events.
const (
	EventCreated       = "created"
	EventStarted       = "started"
	EventCheckpointed  = "checkpointed"
	EventDumpFailed    = "checkpoint-failed"
	EventSkipped       = "checkpoint-skipped"
	EventRestored      = "restored"
	EventRestoreFailed = "restore-failed"
	EventExited        = "exited"
	EventAdopted       = "adopted"
	EventPruned        = "pruned"
	EventRemoved       = "removed"
	EventUpdated       = "updated"
	EventManaged       = "managed"
	EventRebuilt       = "rebuilt"
)

// event notes that something has happened. That it cannot be written must not keep anything from going on.
func (m *Manager) event(e db.Event) {
	e.At = time.Now().UTC()
	if _, err := m.db.AppendEvent(e); err != nil {
		m.log.Error("an event could not be written", "error", err)
	}
	m.log.Info(e.Text, "job", e.Job, "event", e.Kind)
	m.news.tell()
}

// news wakes those who wait for events. Nobody who is slow holds up anything: events wait in the database.
type news struct {
	mu     sync.Mutex
	next   chan struct{} // closed at the next event
	closed bool
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		close(n.next)
		n.next = nil
	}
}

func (n *news) close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.tell()
}

// wait is closed at the next event, and nil after the end.
func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	if n.next == nil {
		n.next = make(chan struct{})
	}
	return n.next
}

// LastEvent is the number of the newest event.
func (m *Manager) LastEvent() uint64 { return m.db.LastEvent() }

// eventsAtOnce bounds how many events are read from the database at a time.
const eventsAtOnce = 256

// Events gives the events with numbers above after, oldest first. With follow it goes on with what happens until the context ends,
// the manager is closed, or the loop is left.
func (m *Manager) Events(ctx context.Context, after uint64, follow bool) iter.Seq2[db.Event, error] {
	return func(yield func(db.Event, error) bool) {
		for ctx.Err() == nil {
			more := m.news.wait()
			if more == nil {
				return // closed
			}
			list, err := m.db.Events(after, eventsAtOnce)
			if err != nil {
				yield(db.Event{}, err)
				return
			}
			for _, e := range list {
				if !yield(e, nil) {
					return
				}
				after = e.Seq
			}
			if len(list) > 0 {
				continue
			}
			if !follow {
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}
}
