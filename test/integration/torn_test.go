package integration

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/inject"
	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/testkit"
	"stasis/internal/uffd"
)

// TestMappingsJoinedInTheFreeze: the mappings of frozen processes are joined and parted when somebody else's userfaultfd ends or begins
// to watch them, as one of a tracker that was killed a moment ago. A list of mappings that was read meanwhile has some of them
// twice: a checkpoint of it could not be restored. So none is made.
func TestMappingsJoinedInTheFreeze(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, engine := range []stasis.Engine{stasis.EngineAuto, stasis.EngineCRIU} {
		t.Run(string(engine), func(t *testing.T) {
			p := testkit.StartSubject(t, "mem:mib=8,rate=0,alone=yes")
			j := newJoiner(t, p.PID())
			dir, attempts := filepath.Join(t.TempDir(), "one"), 0
			var restless func()
			result, err := stasis.Dump(t.Context(), stasis.DumpOptions{PID: p.PID(), Dir: dir, Engine: engine, Tracker: "none", After: stasis.AfterKill,
				AtStep: func(step stasis.Step) error {
					switch {
					case step == stasis.StepArm:
						attempts++
					case step == stasis.StepFreeze && attempts == 1:
						restless = j.begin()
					case step == stasis.StepState && restless != nil:
						restless()
						restless = nil
						j.end(t)
					}
					return nil
				}})
			if err != nil {
				t.Fatalf("at attempt %d, after the mappings were joined %d times: %v", attempts, j.times.Load(), err)
			}
			if j.times.Load() == 0 {
				t.Error("nothing was joined in the freeze")
			}
			t.Logf("the dump was made in %d attempts, the mappings were joined %d times, notes %q", attempts, j.times.Load(), result.Notes)
			if _, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: dir}); err != nil {
				t.Fatal(err)
			}
			p.Prove(t)
		})
	}
}

// joiner parts the largest mapping of a process into many, and joins them again.
type joiner struct {
	fd    *uffd.FD
	area  proc.Range
	times atomic.Int64
}

func newJoiner(t *testing.T, pid int) *joiner {
	t.Helper()
	fd, err := inject.Userfaultfd(pid, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	j := &joiner{fd: uffd.FromFD(fd)}
	if _, err := j.fd.API(uffd.FeatureWPAsync | uffd.FeatureWPUnpopulated); err != nil {
		require.Missing(t, "WP_ASYNC", "%v", err)
	}
	for _, r := range anonymous(t, pid) {
		if r.Len() > j.area.Len() {
			j.area = r
		}
	}
	return j
}

// begin joins and parts until the function that it returns is called.
func (j *joiner) begin() (stop func()) {
	const piece = 2 * proc.PageSize
	halt, stopped := make(chan struct{}), make(chan struct{})
	begun := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			for at := j.area.Start; at < j.area.End; at += 2 * piece {
				_ = j.fd.Register(at, piece, uffd.RegisterWP)
			}
			if j.times.Load() == 0 {
				close(begun)
			}
			_ = j.fd.Unregister(j.area.Start, j.area.Len())
			j.times.Add(1)
			select {
			case <-halt:
				return
			default:
			}
		}
	}()
	<-begun
	return func() { close(halt); <-stopped }
}

func (j *joiner) end(t *testing.T) {
	t.Helper()
	if err := j.fd.Close(); err != nil {
		t.Error(err)
	}
}
