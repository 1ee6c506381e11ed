package integration

import (
	"math"
	"path/filepath"
	"testing"
	"time"

	"stasis"
	"stasis/internal/image"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

// measured is a dump, with the number of pages that its program had written
// before it began and after it ended.
type measured struct {
	before, after int64
	*image.Figures
}

// TestChainIsIncremental: what a chained dump copies and stores follows what was
// written. A full dump would restore as well.
func TestChainIsIncremental(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	const memory = 64 << 20
	pages := float64(memory / image.PageSize)
	for _, test := range []struct {
		name    string
		program []string
		pages   int64 // written at least between two dumps
		preDump bool
	}{
		{"nothing written", []string{"mem:mib=64,rate=0,watch=no"}, 0, false},
		{"4 MB/s", []string{"mem:mib=64,rate=4,watch=no"}, 300, false},
		{"20 MB/s on a pre-dump", []string{"mem:mib=64,rate=20,watch=no"}, 1000, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := testkit.StartSubject(t, test.program...)
			t.Cleanup(func() { _ = stasis.StopTracker(p.PID()) })
			room := t.TempDir()
			take := func(name, parent string, preDump bool) measured {
				t.Helper()
				var m measured
				for begun := p.Note(t).Has["written"]; ; <-time.After(time.Millisecond) {
					if m.before = p.Note(t).Has["written"]; m.before >= begun+test.pages {
						break
					}
				}
				dir := filepath.Join(room, name)
				if parent != "" {
					parent = filepath.Join(room, parent)
				}
				var result *stasis.DumpResult
				var err error
				if preDump {
					result, err = stasis.PreDump(t.Context(), stasis.PreDumpOptions{PID: p.PID(), Dir: dir, Parent: parent})
				} else {
					result, err = stasis.Dump(t.Context(), stasis.DumpOptions{PID: p.PID(), Dir: dir, Parent: parent, Track: true, After: stasis.AfterRun})
				}
				if err != nil {
					t.Fatal(err)
				}
				if len(result.Notes) > 0 {
					t.Errorf("notes: %q", result.Notes)
				}
				m.Figures, m.after = &result.Manifest.Figures, p.Note(t).Has["written"]
				return m
			}
			first := take("first", "", test.preDump)
			if first.BytesStored < memory {
				t.Errorf("the first dump stores %d bytes, the program has %d that do not compress", first.BytesStored, memory)
			}
			second := take("second", "first", false)
			third := take("third", "second", false)
			for name, m := range map[string]measured{"second": second, "third": third} {
				previous := first
				if name == "third" {
					previous = second
				}
				// At most all pages written from one dump's begin to the other's end, each in every round, and at
				// least those from end to begin, which chose their pages by chance; besides these the program has
				// its stacks and other state of no size.
				most := (m.after-previous.before)*image.PageSize*6/5 + 256<<10
				least := int64(pages*(1-math.Exp(-float64(m.before-previous.after)/pages))*image.PageSize) * 8 / 10
				t.Logf("%s: %d to %d KiB written since; %d KiB copied, %d KiB stored, %d of %d KiB referenced", name, least>>10, most>>10,
					m.BytesRaw>>10, m.BytesStored>>10, m.BytesReferenced>>10, m.BytesMemory>>10)
				if m.BytesStored > most || m.BytesRaw-m.BytesFiles > most {
					t.Errorf("the %s dump copies %d and stores %d bytes, should be at most %d", name, m.BytesRaw-m.BytesFiles, m.BytesStored, most)
				}
				if m.BytesStored < least {
					t.Errorf("the %s dump stores %d bytes, should be at least %d", name, m.BytesStored, least)
				}
				if m.BytesMemory < memory || m.BytesReferenced < memory-most {
					t.Errorf("the %s dump has %d bytes of memory, %d of them by reference", name, m.BytesMemory, m.BytesReferenced)
				}
			}
		})
	}
}
