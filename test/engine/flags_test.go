// Package engine tests single decisions of the dump on real processes, where a
// round trip alone would not show which way was taken.
package engine

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/image/reader"
	"stasis/internal/require"
	"stasis/internal/store"
	"stasis/internal/subject"
)

func TestMain(m *testing.M) {
	subject.Main(m, map[string]subject.Role{"large": memory(largeBytes), "small": memory(smallBytes), "unaccepted": unaccepted})
}

const (
	largeBytes = 128 << 20 // that are worth describing to CRIU
	smallBytes = 4 << 20
)

// memory has some, and changes a flag of it when told to.
func memory(bytes int) subject.Role {
	return func(say func(string, ...any), hear func() (string, bool)) { haveMemory(bytes, say, hear) }
}

func haveMemory(bytes int, say func(string, ...any), hear func() (string, bool)) {
	memory, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	for at := 0; at < len(memory); at += 4096 {
		memory[at] = 1
	}
	say("ready")
	for {
		order, ok := hear()
		if !ok {
			return
		}
		if advice, ok := map[string]int{"dontdump": unix.MADV_DONTDUMP, "wipeonfork": unix.MADV_WIPEONFORK}[order]; ok {
			if err := unix.Madvise(memory, advice); err != nil {
				panic(err)
			}
		}
		say("done")
	}
}

// dumpOf dumps a subject and leaves it running; atStep is called at each step.
// It returns the steps that were gone through.
func dumpOf(t *testing.T, pid int, dir string, atStep func(stasis.Step)) []stasis.Step {
	t.Helper()
	var steps []stasis.Step
	_, err := stasis.Dump(context.Background(), stasis.DumpOptions{
		PID: pid, Dir: dir, After: stasis.AfterRun, Compression: "none", MaxRounds: 1,
		CRIU: stasis.CRIUOptions{External: []string{}, ExtUnixSk: true, ShellJob: true},
		AtStep: func(s stasis.Step) error {
			steps = append(steps, s)
			atStep(s)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	folder, err := store.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err := reader.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer checkpoint.Close()
	if err := checkpoint.Verify(context.Background(), 2, nil); err != nil {
		t.Fatal(err)
	}
	return steps
}

// TestAFlagThatChangesDuringTheFreeze: CRIU was told the flags from before the
// freeze. When one turns out to have changed, the dump is made anew, once.
func TestAFlagThatChangesDuringTheFreeze(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	s := subject.Start(t, "large")
	s.Hear()
	changed := false
	steps := dumpOf(t, s.PID, filepath.Join(t.TempDir(), "checkpoint"), func(step stasis.Step) {
		// The tree runs again, and nobody has looked at its flags yet.
		if step == stasis.StepWrite && !changed {
			changed = true
			s.Ask("dontdump")
		}
	})
	if n := count(steps, stasis.StepFreeze); n != 2 {
		t.Errorf("the tree was frozen %d times, want 2: %v", n, steps)
	}
}

// TestMemoryThatBecomesCRIUs between the last look at the flags and the freeze:
// the dump is made anew, once, and leaves it to CRIU then.
func TestMemoryThatBecomesCRIUs(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	s := subject.Start(t, "small")
	s.Hear()
	changed := false
	steps := dumpOf(t, s.PID, filepath.Join(t.TempDir(), "checkpoint"), func(step stasis.Step) {
		if step == stasis.StepCopy && !changed { // the first round copies what was chosen when it was armed
			changed = true
			s.Ask("wipeonfork")
		}
	})
	if n := count(steps, stasis.StepFreeze); n != 2 {
		t.Errorf("the tree was frozen %d times, want 2: %v", n, steps)
	}
}

func TestFlagsThatStayNeedOneFreeze(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	s := subject.Start(t, "large")
	s.Hear()
	steps := dumpOf(t, s.PID, filepath.Join(t.TempDir(), "checkpoint"), func(stasis.Step) {})
	want := []stasis.Step{stasis.StepPrepare, stasis.StepArm, stasis.StepCopy, stasis.StepFreeze, stasis.StepState, stasis.StepWrite, stasis.StepPublish}
	if !slices.Equal(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
}

func count[T comparable](list []T, what T) (n int) {
	for _, x := range list {
		if x == what {
			n++
		}
	}
	return n
}
