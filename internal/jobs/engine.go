package jobs

import (
	"context"
	"runtime"
	"syscall"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/jobs/shim"
)

// Engine makes and deletes checkpoints.
type Engine interface {
	// Dump is stasis.Dump on behalf of a job's owner. consoles are resources outside of the tree, in CRIU's words, that the restore
	// gets from a shim.
	Dump(ctx context.Context, by User, o stasis.DumpOptions, consoles []string) (*stasis.DumpResult, error)
	// MayRestore says whether nobody but root could have written a checkpoint.
	MayRestore(dir string) error
	// Verify reads all that a restore would read.
	Verify(ctx context.Context, dir string) error
	// Remove deletes checkpoints, and keeps of them what others still need.
	Remove(ctx context.Context, dirs []string) error
}

// User is to whom a job belongs.
type User struct{ UID, GID uint32 }

// Runner reaches the shims of jobs; dir is a shim's folder.
type Runner interface {
	Launch(ctx context.Context, dir string) (Shim, error)
	// Connect finds a shim that works already; the error wraps shim.ErrGone where there is none.
	Connect(ctx context.Context, dir string) (Shim, error)
	// LastStatus is what a shim that is gone has left behind.
	LastStatus(dir string) (shim.Status, error)
	// Alive says whether a job's first process, known by its number and start time, has not ended.
	Alive(pid int, start uint64) bool
}

// Shim is what runs beside a job, or stands for it; see shim.Client.
type Shim interface {
	Status(ctx context.Context) (shim.Status, error)
	Start(ctx context.Context, c shim.Command) (shim.Status, error)
	Restore(ctx context.Context, r shim.Restore) (shim.Status, shim.Restored, error)
	Signal(ctx context.Context, sig syscall.Signal, tree bool) error
	Wait(ctx context.Context, run int) (shim.Status, error)
	Quit(ctx context.Context) error
}

// terminals is what a Shim can do besides, if its job has a console here.
type terminals interface {
	Attach(ctx context.Context, rows, cols uint16) (*shim.Terminal, error)
}

var (
	_ Shim      = (*shim.Client)(nil)
	_ terminals = (*shim.Client)(nil)
)

// Library is the library as an engine.
type Library struct{}

var _ Engine = Library{}

// Dump implements Engine.
func (Library) Dump(ctx context.Context, _ User, o stasis.DumpOptions, consoles []string) (*stasis.DumpResult, error) {
	o.CRIU.External = append(append([]string(nil), o.CRIU.External...), consoles...)
	return stasis.Dump(ctx, o)
}

// MayRestore implements Engine. The user of this library sees to that.
func (Library) MayRestore(string) error { return nil }

// Verify implements Engine.
func (Library) Verify(ctx context.Context, dir string) error {
	checkpoint, err := chain.Open(dir)
	if err != nil {
		return err
	}
	defer checkpoint.Close()
	return checkpoint.Verify(ctx, runtime.NumCPU(), nil)
}

// Remove implements Engine.
func (Library) Remove(_ context.Context, dirs []string) error {
	_, err := chain.Remove(dirs, chain.Options{})
	return err
}

// processes is the real runner.
type processes struct {
	keep int64 // bytes of a job's output
}

func (p processes) Launch(_ context.Context, dir string) (Shim, error) {
	c, err := shim.Launch(dir, p.keep)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (processes) Connect(ctx context.Context, dir string) (Shim, error) {
	c, err := shim.Connect(ctx, dir)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (processes) Alive(pid int, start uint64) bool { return (&process{pid: pid, start: start}).alive() }

func (processes) LastStatus(dir string) (shim.Status, error) { return shim.LastStatus(dir) }
