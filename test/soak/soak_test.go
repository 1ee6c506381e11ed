// Package soak takes programs on random walks through chains of checkpoints:
// each step is a dump on top of any earlier one, a pre-dump, a restore of any of
// them in place of the program, something that is done to the checkpoints, or a
// mishap. After each step all memory has to prove itself. It has only tests.
//
// What is done follows from a seed, which is printed; what the program does
// meanwhile does not.
package soak

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"stasis/internal/require"
)

var (
	duration = flag.Duration("duration", 0, "how long to walk, all worlds together; 0: a fixed number of steps")
	seedFlag = flag.Uint64("seed", 0, "of the walks; 0: the usual one, or with -duration one of chance")
	only     = flag.String("world", "", "the only world to walk in")

	onlyMoves = flag.String("moves", "", "the only moves, by their names with commas between, such as \"full dump,killed restore\"")
)

const (
	usualSteps = 16 // of each world
	usualSeed  = 3
	lapSteps   = 120 // of each world, with -duration
	// limit is how many checkpoints there are before the walk begins a new chain.
	limit = 16
)

// world is a program, by the kind of its memory, and what cannot be done with it.
type world struct {
	name      string
	features  []string
	children  bool // so it cannot execute itself
	shares    bool // memory since a fork, which the engine lazy-pages would break up
	hugePages int  // that it needs; a machine has to have so many in one piece
	long      bool // only with -duration or -world: what it finds is not all mended yet
}

var worlds = []world{
	{name: "churn", features: []string{"churn:threads=2,rate=3000", "mem:mib=4,rate=30,writers=2,touched=60,watch=no"}},
	{name: "forks", children: true, shares: true,
		features: []string{"mem:mib=2,rate=10,watch=no", "tree:mib=2,children=2,grandchildren=1", "threads:count=4"}},
	{name: "family", long: true, children: true, shares: true, features: []string{"family:rate=40", "churn:threads=1,rate=500"}},
	{name: "huge", features: []string{"mem:mib=8,rate=20,thp=yes,touched=90,watch=no", "advised", "deepstack:kib=512"}},
	{name: "moving-huge", long: true, features: []string{"churn:threads=1,rate=60,of=huge", "mem:mib=8,rate=20,thp=yes,touched=90,watch=no", "advised", "deepstack:kib=512"}},
	{name: "hugetlb", long: true, hugePages: 24, features: []string{"churn:threads=1,rate=60,of=hugetlb", "hugetlb:pages=1", "mem:mib=2,rate=10,watch=no"}},
	{name: "direct", features: []string{"direct:mib=8,file=8,threads=4"}},
	{name: "kinds", children: true, shares: true,
		features: []string{"filemap", "anonshared", "memfd", "locked:kib=64", "protected", "churn:threads=1,rate=500"}},
	{name: "reserved", long: true, features: []string{"reserved:gib=256", "zeroread:mib=4", "mem:mib=4,rate=20,watch=no"}},
}

func TestMain(m *testing.M) {
	if text := os.Getenv(workerVariable); text != "" {
		work(text)
		return
	}
	os.Exit(m.Run())
}

func TestSoak(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	seed := *seedFlag
	switch {
	case seed != 0:
	case *duration > 0:
		seed = rand.Uint64()
	default:
		seed = usualSeed
	}
	t.Logf("the seed is %d", seed)
	chosen := worlds
	if *only != "" {
		chosen = nil
		for _, world := range worlds {
			if world.name == *only {
				chosen = append(chosen, world)
			}
		}
		if len(chosen) == 0 {
			t.Fatalf("there is no world %q", *only)
		}
	}
	if *duration == 0 {
		for i, world := range chosen {
			if world.long && *only == "" {
				continue
			}
			t.Run(world.name, func(t *testing.T) {
				w := newWalk(t, world, rand.New(rand.NewPCG(seed, uint64(i))))
				for range usualSteps {
					w.step()
				}
			})
		}
		return
	}
	// No test ends the process in the middle of a walk, so a failure ends all.
	for end, lap := time.Now().Add(*duration), uint64(0); time.Now().Before(end) && !t.Failed(); lap++ {
		world := chosen[lap%uint64(len(chosen))]
		t.Run(fmt.Sprintf("%s-%d", world.name, lap), func(t *testing.T) {
			w := newWalk(t, world, rand.New(rand.NewPCG(seed, lap)))
			for steps := 0; steps < lapSteps && time.Now().Before(end); steps++ {
				w.step()
			}
		})
	}
}
