package integration

import (
	"flag"
	"slices"
	"testing"

	"stasis"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

var stock = flag.Bool("stock", false, "also take every program through plain CRIU, to see what it can do on this machine")

// TestRoundTrip: every kind of program, with what Stasis chooses by itself.
func TestRoundTrip(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, kind := range testkit.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			testkit.RoundTrip(t, kind, library{engine: stasis.EngineAuto})
		})
	}
}

// hard are kinds of which each treats memory in another way.
var hard = []string{"memory-written", "memory-kinds", "memory-locked-guards", "memory-reserved", "memory-shared", "threads", "tree", "network", "redis",
	"settings", "timerfd-periodic", "eventfd-semaphore"}

// notLazy are kinds that a lazy dump of CRIU is not for (docs/limits.md): it
// leaves no memory to CRIU, so that pages shared since fork come back as copies,
// and CRIU takes a minute and more to look through terabytes of empty space.
var notLazy = []string{"tree", "memory-reserved"}

// TestEngines: each way to keep memory from CRIU, with an eager restore and with
// a lazy one, gives the same processes back.
func TestEngines(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	for _, test := range []struct {
		name string
		library
	}{
		{"lazy-pages", library{engine: stasis.EngineLazyPages}},
		{"criu", library{engine: stasis.EngineCRIU}},
		{"blind-lazy-restore", library{engine: stasis.EngineBlind, lazy: true}},
		{"lazy-pages-lazy-restore", library{engine: stasis.EngineLazyPages, lazy: true}},
		{"criu-lazy-restore", library{engine: stasis.EngineCRIU, lazy: true}},
	} {
		for _, kind := range testkit.Kinds() {
			if !slices.Contains(hard, kind.Name) || test.engine == stasis.EngineLazyPages && slices.Contains(notLazy, kind.Name) {
				continue
			}
			t.Run(test.name+"/"+kind.Name, func(t *testing.T) { testkit.RoundTrip(t, kind, test.library) })
		}
	}
}

// TestStockCRIU: what plain CRIU does with the same programs. Where it fails,
// the program's entry in testkit says why (CRIULacks), or the program is wrong.
func TestStockCRIU(t *testing.T) {
	if !*stock {
		t.Skip("only with -stock: it tests CRIU, not Stasis")
	}
	for _, kind := range testkit.Kinds() {
		if kind.CRIULacks != "" {
			t.Logf("%s: left out: %s", kind.Name, kind.CRIULacks)
			continue
		}
		t.Run(kind.Name, func(t *testing.T) {
			testkit.RoundTrip(t, kind, testkit.StockCRIU(t))
		})
	}
}
