package integration

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/image"
	"stasis/internal/proc"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// rewriter writes to memory of a program from outside, at exact moments, what is there already.
type rewriter struct {
	t     *testing.T
	pid   int
	start uint64
	heads []byte // the first byte of each page
}

// newRewriter takes the largest mapping of a program that does not write itself.
func newRewriter(t *testing.T, pid int) *rewriter {
	t.Helper()
	maps, err := proc.Maps(pid)
	if err != nil {
		t.Fatal(err)
	}
	var largest proc.Mapping
	for _, m := range maps {
		if m.Private() && m.Anonymous() && m.Len() > largest.Len() {
			largest = m
		}
	}
	r := &rewriter{t: t, pid: pid, start: largest.Start, heads: make([]byte, largest.Len()/image.PageSize)}
	r.each(len(r.heads), unix.ProcessVMReadv)
	return r
}

// write makes the first so many pages count as written.
func (r *rewriter) write(pages int) { r.each(pages, unix.ProcessVMWritev) }

func (r *rewriter) each(pages int, do func(pid int, local []unix.Iovec, remote []unix.RemoteIovec, flags uint) (int, error)) {
	const most = 1024 // IOV_MAX
	for from := 0; from < pages; from += most {
		n := min(most, pages-from)
		remote := make([]unix.RemoteIovec, n)
		for i := range remote {
			remote[i] = unix.RemoteIovec{Base: uintptr(r.start) + uintptr(from+i)*image.PageSize, Len: 1}
		}
		local := []unix.Iovec{{Base: &r.heads[from], Len: uint64(n)}}
		if did, err := do(r.pid, local, remote, 0); err != nil || did != n {
			r.t.Errorf("%d of %d bytes of process %d: %v", did, n, r.pid, err)
		}
	}
}

// TestRoundsFollowTheProgram dumps a program that writes while each block is copied: the rounds have to go on where they leave
// less and less, and to end where they don't.
func TestRoundsFollowTheProgram(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	const memory = 16 << 20
	for _, test := range []struct {
		name        string
		pause       time.Duration              // that is allowed; 0: the default, which is too short for half of the memory
		written     func(round, pages int) int // pages, beside each block of a round
		least, most int                        // rounds while it runs
		copied      float64                    // at most, in all rounds and the freeze, in times the memory
		left        float64                    // at least, by the freeze
	}{
		{"nothing", 0, func(_, _ int) int { return 0 }, 1, 1, 1.2, 0},
		{"all of it", 0, func(_, pages int) int { return pages }, 2, 2, 2.2, 0.99}, // the second into RAM, most of which need not be written
		{"a quarter of what the round before copied", time.Microsecond, func(round, pages int) int { return pages >> (2 * (round + 1)) }, 3, 8, 1.6, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := testkit.StartSubject(t, "mem:mib=16,rate=0,watch=no")
			r := newRewriter(t, p.PID())
			result, err := stasis.Dump(t.Context(), stasis.DumpOptions{
				PID: p.PID(), Dir: filepath.Join(t.TempDir(), "dump"), After: stasis.AfterRun, MaxPause: test.pause,
				Progress: func(at stasis.Progress) {
					if at.Step == stasis.StepCopy && at.Total > 0 {
						r.write(test.written(at.Round, len(r.heads)))
					}
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			f := result.Manifest.Figures
			live, last := len(f.Rounds)-1, f.Rounds[len(f.Rounds)-1].Bytes
			t.Logf("rounds: %+v", f.Rounds)
			if live < test.least || live > test.most {
				t.Errorf("%d rounds were made while it ran, and %d to %d should be", live, test.least, test.most)
			}
			if copied := float64(f.BytesRaw) / memory; copied > test.copied || float64(last) < test.left*memory {
				t.Errorf("%.2f times the memory were copied, at most %.2f should be; the freeze copied %d bytes", copied, test.copied, last)
			}
			if a := p.Check(t); !a.OK {
				t.Errorf("the program says: %s", a.Text)
			}
		})
	}
}

// TestAProgramThatOutrunsItsDumps is dumped again so soon after it has written all of its memory that no round can keep up, by how long
// the first dump took. All of its memory is copied in the freeze then, and has to be as it was when it is restored.
func TestAProgramThatOutrunsItsDumps(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	const (
		memory = 8 << 20
		rate   = 2 << 20 // bytes per second that the first dump may write
	)
	p := testkit.StartSubject(t, "mem:mib=8,rate=0,watch=no")
	t.Cleanup(func() { _ = stasis.StopTracker(p.PID()) })
	room := t.TempDir()
	first, second, third := filepath.Join(room, "first"), filepath.Join(room, "second"), filepath.Join(room, "third")
	dump := func(o stasis.DumpOptions) *image.Manifest {
		t.Helper()
		o.PID, o.FinalBuffer, o.Track = p.PID(), 1<<20, true
		result, err := stasis.Dump(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if len(result.Notes) > 0 {
			t.Errorf("notes: %q", result.Notes)
		}
		return result.Manifest
	}
	before := dump(stasis.DumpOptions{Dir: first, After: stasis.AfterRun, Bandwidth: rate, Compression: "none"})
	newRewriter(t, p.PID()).write(memory / image.PageSize)
	f := dump(stasis.DumpOptions{Dir: second, Parent: first, After: stasis.AfterRun}).Figures
	took := time.Since(before.Created) // more than the program had to write, as the dump reckons
	copied := before.Figures.Rounds[0]
	couldCopy := float64(copied.Bytes) / float64(copied.US) * float64(took.Microseconds())
	t.Logf("in %v %.0f bytes could be copied; rounds: %+v", took, couldCopy, f.Rounds)
	if f.BytesRaw < memory || f.BytesRaw > 5*memory/4 {
		t.Errorf("%d bytes were copied", f.BytesRaw)
	}
	if 1.5*couldCopy < memory && len(f.Rounds) > 1 {
		t.Error("a round was made while it ran")
	}
	// The freeze has armed the trackers: next to nothing was written since.
	if f := dump(stasis.DumpOptions{Dir: third, Parent: second, After: stasis.AfterKill}).Figures; f.BytesRaw > memory/4 {
		t.Errorf("%d bytes were copied of a program that had not written since", f.BytesRaw)
	}
	if _, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: third}); err != nil {
		t.Fatal(err)
	}
	if a := p.Check(t); !a.OK {
		t.Errorf("the program says: %s", a.Text)
	}
}
