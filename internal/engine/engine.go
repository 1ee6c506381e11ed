// Package engine makes dumps and restores for the daemon and its jobs: the library, with a limit of how many dumps run at once,
// with metrics, and with a catalog that knows at once of what was made.
//
// Words: a slot is the right to make one dump; who finds none free waits for one, in the order of asking.
//
// All methods may be called from several goroutines at once.
package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"stasis"
	"stasis/internal/catalog"
	"stasis/internal/config"
)

// Library is what does the work; tests put something else in its place.
type Library struct {
	Dump    func(context.Context, stasis.DumpOptions) (*stasis.DumpResult, error)
	PreDump func(context.Context, stasis.PreDumpOptions) (*stasis.DumpResult, error)
	Restore func(context.Context, stasis.RestoreOptions) (*stasis.RestoreResult, error)
}

// TheLibrary is the real one.
func TheLibrary() Library {
	return Library{Dump: stasis.Dump, PreDump: stasis.PreDump, Restore: stasis.Restore}
}

// Engine makes dumps and restores.
type Engine struct {
	// Config are the settings that hold for everything that says nothing else.
	Config *config.Config
	// Catalog knows the checkpoints in the folder of the configuration.
	Catalog *catalog.Catalog

	criuPath string
	library  Library
	slots    *semaphore.Weighted
	figures  *figures
	dumps    atomic.Int32
	restores atomic.Int32

	mu      sync.Mutex
	running sync.WaitGroup // Add while holding mu and not closed
	closed  bool           // guarded by mu
}

// ErrStopping: the daemon stops, and begins nothing new.
var ErrStopping = errors.New("the daemon is stopping: try again when it is back")

// New makes an engine whose figures go to a registry. criuPath is the CRIU to use; "" is the first that is new enough.
func New(c *config.Config, criuPath string, library Library, registry prometheus.Registerer) *Engine {
	return &Engine{
		Config: c, Catalog: catalog.New(c.Checkpoint.Dir), criuPath: criuPath, library: library,
		slots: semaphore.NewWeighted(int64(c.Checkpoint.Dumps())), figures: newFigures(registry),
	}
}

// Busy says how many dumps and restores are under way, those included that wait for a slot.
func (e *Engine) Busy() (dumps, restores int) { return int(e.dumps.Load()), int(e.restores.Load()) }

// Close lets nothing new begin, and waits for what is under way, whose contexts the caller may cancel.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.running.Wait()
	e.Catalog.Close()
}

func (e *Engine) begin(count *atomic.Int32) (end func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrStopping
	}
	e.running.Add(1)
	count.Add(1)
	return func() { count.Add(-1); e.running.Done() }, nil
}

// slot waits for the right to make a dump.
func (e *Engine) slot(ctx context.Context) (release func(), err error) {
	end, err := e.begin(&e.dumps)
	if err != nil {
		return nil, err
	}
	if err := e.slots.Acquire(ctx, 1); err != nil {
		end()
		return nil, fmt.Errorf("wait for another dump to end: %w", err)
	}
	return func() { e.slots.Release(1); end() }, nil
}

// Dump makes a checkpoint of a process tree (stasis.Dump) when a slot is free.
func (e *Engine) Dump(ctx context.Context, o stasis.DumpOptions) (*stasis.DumpResult, error) {
	release, err := e.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if o.CRIUPath == "" {
		o.CRIUPath = e.criuPath
	}
	begun := time.Now()
	result, err := e.library.Dump(ctx, o)
	e.made("dump", result, time.Since(begun), err)
	return result, err //nolint:wrapcheck // it says all there is to say
}

// PreDump copies the memory of a process tree (stasis.PreDump) when a slot is free.
func (e *Engine) PreDump(ctx context.Context, o stasis.PreDumpOptions) (*stasis.DumpResult, error) {
	release, err := e.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	begun := time.Now()
	result, err := e.library.PreDump(ctx, o)
	e.made("pre-dump", result, time.Since(begun), err)
	return result, err //nolint:wrapcheck // it says all there is to say
}

func (e *Engine) made(kind string, result *stasis.DumpResult, took time.Duration, err error) {
	e.figures.dumped(kind, result, took, err)
	if err == nil && result.Dir != "" {
		e.Catalog.Take(result.Dir)
	}
}

// Restore brings a process tree back (stasis.Restore). The caller waits for its root, which becomes a child of the daemon.
func (e *Engine) Restore(ctx context.Context, o stasis.RestoreOptions) (*stasis.RestoreResult, error) {
	end, err := e.begin(&e.restores)
	if err != nil {
		return nil, err
	}
	defer end()
	if o.CRIUPath == "" {
		o.CRIUPath = e.criuPath
	}
	result, err := e.library.Restore(ctx, o)
	e.figures.restored(result, err)
	return result, err //nolint:wrapcheck // it says all there is to say
}
