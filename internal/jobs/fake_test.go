package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"stasis"
	"stasis/internal/image"
	"stasis/internal/jobs/db"
	"stasis/internal/jobs/shim"
	"stasis/internal/store"
)

// world is what a manager works on in tests: a fake engine and fake shims, which outlive a manager as real ones do.
type world struct {
	t       *testing.T // of the bubble
	mu      sync.Mutex
	shims   map[string]*fakeShim // by folder
	nextPID int
	dumping map[int]int // dumps under way by pid
	most    int         // dumps of one process at once
	all     int         // dumps under way
	mostAll int
	dumps   int
	removed []string

	takes time.Duration                    // of a dump
	fail  func(pid int) error              // of a dump
	bad   map[string]error                 // checkpoints that cannot be restored, by the last element of their path
	dumpO func(o stasis.DumpOptions) error // looks at the options

	published func(dir string) // looks at what there is when a checkpoint has just been published
	restoring chan struct{}    // restores last until it is closed, also when nobody waits for them any more
}

func newWorld() *world {
	return &world{shims: make(map[string]*fakeShim), nextPID: 1000, dumping: make(map[int]int), bad: make(map[string]error)}
}

func (w *world) MayRestore(string) error { return nil }

func (w *world) Dump(ctx context.Context, _ User, o stasis.DumpOptions, _ []string) (*stasis.DumpResult, error) {
	w.mu.Lock()
	w.dumps++
	n := w.dumps
	w.dumping[o.PID]++
	w.all++
	w.most, w.mostAll = max(w.most, w.dumping[o.PID]), max(w.mostAll, w.all)
	takes, fail, look := w.takes, w.fail, w.dumpO
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.dumping[o.PID]--
		w.all--
	}()
	if look != nil {
		if err := look(o); err != nil {
			return nil, err
		}
	}
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if fail != nil {
		if err := fail(o.PID); err != nil {
			return nil, err
		}
	}
	if o.AtStep != nil {
		if err := o.AtStep(stasis.StepState); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if o.AtStep != nil {
		if err := o.AtStep(stasis.StepPublish); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(o.Dir, store.ManifestName), []byte("{}"), 0o600); err != nil {
		return nil, err
	}
	if w.published != nil {
		w.published(o.Dir)
	}
	if o.After == stasis.AfterKill {
		w.byPID(o.PID).end(&db.Exit{Code: -1, Signal: "SIGKILL"})
	}
	return &stasis.DumpResult{Dir: o.Dir, After: o.After, Manifest: &image.Manifest{
		ID: fmt.Sprintf("%032x", n), Created: time.Now(), RootPID: o.PID, Shards: []image.Shard{{Size: 100}},
	}}, nil
}

func (w *world) Verify(_ context.Context, dir string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bad[filepath.Base(dir)]
}

func (w *world) Remove(_ context.Context, dirs []string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, dir := range dirs {
		w.removed = append(w.removed, filepath.Base(dir))
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) byPID(pid int) *fakeShim {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.shims {
		if s.now.PID == pid {
			return s
		}
	}
	return nil
}

func (w *world) Launch(_ context.Context, dir string) (Shim, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &fakeShim{w: w, dir: dir, changed: make(chan struct{})}
	w.shims[dir] = s
	return s, nil
}

func (w *world) Connect(_ context.Context, dir string) (Shim, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.shims[dir]; s != nil && !s.dead {
		return s, nil
	}
	return nil, shim.ErrGone
}

func (w *world) LastStatus(dir string) (shim.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.shims[dir]; s != nil {
		return s.now, nil
	}
	return shim.Status{}, os.ErrNotExist
}

func (w *world) Alive(pid int, _ uint64) bool {
	s := w.byPID(pid)
	w.mu.Lock()
	defer w.mu.Unlock()
	return s != nil && s.now.Running
}

// shimOf is the shim of a job.
func (w *world) shimOf(m *Manager, name string) *fakeShim {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shims[m.shimDir(name)]
}

type fakeShim struct {
	w        *world
	dir      string
	now      shim.Status   // guarded by w.mu
	dead     bool          // guarded by w.mu
	changed  chan struct{} // guarded by w.mu
	restored []string      // guarded by w.mu
	deaf     bool          // ends by SIGKILL alone
	busy     bool          // guarded by w.mu; a restore is under way
}

var _ Shim = (*fakeShim)(nil)

// begin begins a run. With w.mu held.
func (s *fakeShim) begin() shim.Status {
	s.w.nextPID++
	s.now = shim.Status{Run: s.now.Run + 1, Running: true, PID: s.w.nextPID, Start: 1}
	close(s.changed)
	s.changed = make(chan struct{})
	return s.now
}

// end ends the run.
func (s *fakeShim) end(exit *db.Exit) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	exit.At = time.Now()
	s.now.Running, s.now.Exit = false, exit
	close(s.changed)
	s.changed = make(chan struct{})
}

// die ends the shim, with or without its job.
func (s *fakeShim) die() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.dead = true
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *fakeShim) Status(context.Context) (shim.Status, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.dead {
		return shim.Status{}, shim.ErrGone
	}
	now := s.now
	now.Busy = s.busy
	return now, nil
}

func (s *fakeShim) Start(_ context.Context, c shim.Command) (shim.Status, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if c.Argv[0] == "no-such-command" {
		return shim.Status{}, errors.New("no-such-command: no such command")
	}
	return s.begin(), nil
}

func (s *fakeShim) Restore(ctx context.Context, r shim.Restore) (shim.Status, shim.Restored, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.restored = append(s.restored, filepath.Base(r.Dir))
	if s.w.restoring == nil {
		return s.restore(r)
	}
	s.busy = true
	type outcome struct {
		now      shim.Status
		restored shim.Restored
		err      error
	}
	done := make(chan outcome, 1)
	go func() {
		<-s.w.restoring
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		now, restored, err := s.restore(r)
		s.busy = false
		done <- outcome{now, restored, err}
	}()
	s.w.mu.Unlock()
	defer s.w.mu.Lock()
	select {
	case o := <-done:
		return o.now, o.restored, o.err
	case <-ctx.Done():
		return shim.Status{}, shim.Restored{}, ctx.Err()
	}
}

// restore is the work itself. With w.mu held.
func (s *fakeShim) restore(r shim.Restore) (shim.Status, shim.Restored, error) {
	name := filepath.Base(r.Dir)
	if err := s.w.bad[name]; err != nil {
		return shim.Status{}, shim.Restored{}, err
	}
	if s.now.Running {
		return shim.Status{}, shim.Restored{}, errors.New("the job runs already")
	}
	return s.begin(), shim.Restored{}, nil
}

func (s *fakeShim) Signal(_ context.Context, sig syscall.Signal, _ bool) error {
	if s.deaf && sig != syscall.SIGKILL || !ends(sig) {
		return nil
	}
	s.end(&db.Exit{Code: -1, Signal: sig.String()})
	return nil
}

func (s *fakeShim) Wait(ctx context.Context, run int) (shim.Status, error) {
	for {
		s.w.mu.Lock()
		now, dead, changed := s.now, s.dead, s.changed
		s.w.mu.Unlock()
		if dead {
			return shim.Status{}, shim.ErrGone
		}
		if now.Run != run || !now.Running {
			return now, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return shim.Status{}, ctx.Err()
		}
	}
}

func (s *fakeShim) Quit(context.Context) error {
	s.die()
	return nil
}

// open opens a manager on the world, in a folder that another one may have used before.
func (w *world) open(t *testing.T, dir string, change func(*Options)) *Manager {
	t.Helper()
	o := Options{
		Database: filepath.Join(dir, "state.db"), Dir: filepath.Join(dir, "shims"), Checkpoints: filepath.Join(dir, "checkpoints"),
		Engine: w, Runner: w, Parallel: 4,
	}
	if change != nil {
		change(&o)
	}
	m, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func closeManager(t *testing.T, m *Manager) {
	t.Helper()
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func run(t *testing.T, m *Manager, spec db.Spec) Info {
	t.Helper()
	if spec.Argv == nil {
		spec.Argv = []string{"count"}
	}
	info, err := m.Run(t.Context(), spec, 0)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func get(t *testing.T, m *Manager, name string) Info {
	t.Helper()
	info, err := m.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// events lists the kinds of a job's events.
func events(t *testing.T, m *Manager, kinds ...string) []db.Event {
	t.Helper()
	var list []db.Event
	for e, err := range m.Events(t.Context(), 0, false) {
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range kinds {
			if e.Kind == kind {
				list = append(list, e)
			}
		}
	}
	return list
}
