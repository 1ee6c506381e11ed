package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	"stasis"
	"stasis/internal/image/writer"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// linked is a checkpoint of a chain.
type linked struct {
	dir     string
	origins int    // ancestors that it refers to
	rewind  func() // makes the program known as it was then
}

// TestLongChain dumps a program that writes here and there until a checkpoint would need more ancestors than it may, and a few times
// more: pages are moved then, those of old differences among them. The program has so much memory that each checkpoint has pages that nobody
// writes for a hundred dumps, also where a dump takes seconds. Checkpoints from before that, of that moment and from after it have to
// restore.
func TestLongChain(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	p := testkit.StartSubject(t, "mem:mib=64,rate=1,watch=no")
	t.Cleanup(func() { _ = stasis.StopTracker(p.PID()) })
	room := t.TempDir()
	var chain []linked
	dump := func() linked {
		t.Helper()
		p.Work(t)
		l, parent := linked{dir: filepath.Join(room, fmt.Sprintf("c%02d", len(chain))), rewind: p.Snapshot()}, ""
		if len(chain) > 0 {
			parent = chain[len(chain)-1].dir
		}
		result, err := stasis.Dump(t.Context(), stasis.DumpOptions{PID: p.PID(), Dir: l.dir, Parent: parent, Track: true, After: stasis.AfterRun})
		if err != nil {
			t.Fatalf("dump %d: %v", len(chain), err)
		}
		if len(result.Notes) > 0 {
			t.Errorf("dump %d: notes: %q", len(chain), result.Notes)
		}
		m, err := stasis.Inspect(t.Context(), l.dir) // as it was published
		if err != nil {
			t.Fatal(err)
		}
		l.origins = len(m.Manifest.Origins)
		if l.origins > writer.MaxOrigins {
			t.Fatalf("checkpoint %d refers to %d ancestors, more than %d", len(chain), l.origins, writer.MaxOrigins)
		}
		chain = append(chain, l)
		return l
	}

	const most, after = 60, 4
	for last := dump(); ; {
		next := dump()
		if next.origins <= writer.MaxOrigins/2+1 && last.origins >= writer.MaxOrigins-1 {
			break
		}
		if len(chain) == most {
			t.Fatalf("after %d dumps the last refers to %d ancestors, and nothing was moved", most, next.origins)
		}
		last = next
	}
	moved := len(chain) - 1
	for range after {
		dump()
	}
	newest := len(chain) - 1
	t.Logf("checkpoint %d refers to %d ancestors, %d to %d, %d to %d", moved-1, chain[moved-1].origins, moved, chain[moved].origins, newest, chain[newest].origins)

	for _, test := range []struct {
		at   int
		lazy bool
	}{{newest, false}, {moved, false}, {moved - 1, false}, {1, true}, {moved, true}, {newest, true}} {
		testkit.Kill(t, p.PID())
		l := chain[test.at]
		result, err := stasis.Restore(t.Context(), stasis.RestoreOptions{Dir: l.dir, Lazy: test.lazy})
		if err != nil {
			t.Fatalf("restore of checkpoint %d (lazy: %v): %v", test.at, test.lazy, err)
		}
		if len(result.Warnings) > 0 {
			t.Errorf("restore of checkpoint %d (lazy: %v): warnings: %q", test.at, test.lazy, result.Warnings)
		}
		l.rewind()
		p.Prove(t)
		p.Work(t)
		p.Prove(t)
		if t.Failed() {
			t.Fatalf("that was checkpoint %d (lazy: %v)", test.at, test.lazy)
		}
	}
}
