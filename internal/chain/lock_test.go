package chain

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"stasis/internal/store"
)

// TestLockSharedWaits sees that whoever wants to read waits for whoever changes something, or for the end of its context.
func TestLockSharedWaits(t *testing.T) {
	w := newWorld(t, 30)
	line := w.line(2)
	held, err := LockExclusive(line[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockExclusive(line[0]); !errors.Is(err, ErrBusy) {
		t.Errorf("twice: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := LockShared(ended, line[1]); !errors.Is(err, context.Canceled) { // its ancestor is held
		t.Errorf("with a context that ended: %v", err)
	}
	type result struct {
		lock *Lock
		err  error
	}
	got := make(chan result, 1)
	go func() {
		l, err := LockShared(context.Background(), line[1])
		got <- result{l, err}
	}()
	select {
	case r := <-got:
		t.Fatalf("it did not wait: %v", r.err)
	case <-time.After(50 * time.Millisecond): // long enough to see a lock that does not hold
	}
	if err := held.Unlock(); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-got:
		if r.err != nil {
			t.Fatal(r.err)
		}
		if _, err := Remove(line[:1], Options{}); !errors.Is(err, ErrBusy) {
			t.Errorf("removed under a reader: %v", err)
		}
		if err := errors.Join(r.lock.Unlock(), r.lock.Unlock()); err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for nobody")
	}
	if l, err := LockExclusive(line...); err != nil {
		t.Errorf("something was left locked: %v", err)
	} else if err := l.Unlock(); err != nil {
		t.Error(err)
	}
	if _, err := LockShared(t.Context(), filepath.Join(line[0], "nothing")); !errors.Is(err, store.ErrNoCheckpoint) {
		t.Errorf("nothing there: %v", err)
	}
}

// TestPruneWhileDumping lets dumps go on top of each other while others prune and compact what they build on.
func TestPruneWhileDumping(t *testing.T) {
	w := newWorld(t, 31)
	place := w.places[0]
	stop := make(chan struct{})
	var others sync.WaitGroup
	for _, policy := range []Policy{{Last: 1}, {Last: 2}} {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := Prune(place, PruneOptions{Policy: policy}); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, store.ErrNoCheckpoint) {
					t.Errorf("prune: %v", err)
					return
				}
			}
		})
	}
	top := ""
	for i := range 30 {
		dir := filepath.Join(place, fmt.Sprintf("d%03d", i))
		w.dump(dir, top, w.next(w.ckpts[top]))
		if err := w.read(dir, w.ckpts[dir]); err != nil {
			t.Fatal(err)
		}
		top = dir
	}
	close(stop)
	others.Wait()
	if _, _, err := Prune(place, PruneOptions{Policy: Policy{Last: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := w.read(top, w.ckpts[top]); err != nil {
		t.Error(err)
	}
}
