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
	"regexp"
	"testing"
	"time"

	"stasis/internal/require"
)

var (
	duration = flag.Duration("duration", 0, "how long to walk, all worlds together; 0: a fixed number of steps")
	seedFlag = flag.Uint64("seed", 0, "of the walks; 0: the usual one, or with -duration one of chance")
	only     = flag.String("world", "", "the only world to walk in")
	limit    = flag.Duration("limit", 15*time.Second, "where the number of steps is fixed: how long to walk in one world at most, on a slow machine")
	moves    = flag.String("moves", "", "the only moves to make: a regular expression of their names")
)

const (
	usualSteps = 40 // of each world
	usualSeed  = 3
	lapSteps   = 120 // of each world, with -duration
	// longest is how many checkpoints there are before the walk begins a new chain.
	longest = 16
)

// world is a program, by the kind of its memory, and what cannot be done with it.
type world struct {
	name      string
	features  []string
	children  bool // so it cannot execute itself
	notLazy   bool // engine lazy-pages breaks up what is shared since a fork, and takes long for reserved space
	hugePages int  // that it needs; a machine has to have so many in one piece
}

var worlds = []world{
	{name: "churn", features: []string{"churn:threads=2,rate=3000", "mem:mib=4,rate=30,writers=2,touched=60,watch=no"}},
	{name: "forks", children: true, notLazy: true,
		features: []string{"mem:mib=2,rate=10,watch=no", "tree:mib=2,children=2,grandchildren=1", "threads:count=4"}},
	{name: "family", children: true, notLazy: true, features: []string{"family:rate=40", "churn:threads=1,rate=500"}},
	{name: "huge", features: []string{"mem:mib=8,rate=20,thp=yes,touched=90,watch=no", "advised", "deepstack:kib=512"}},
	{name: "moving-huge", features: []string{"churn:threads=1,rate=60,of=huge", "mem:mib=8,rate=20,thp=yes,touched=90,watch=no", "advised", "deepstack:kib=512"}},
	{name: "hugetlb", hugePages: 24, features: []string{"churn:threads=1,rate=60,of=hugetlb", "hugetlb:pages=1", "mem:mib=2,rate=10,watch=no"}},
	{name: "direct", features: []string{"direct:mib=8,file=8,threads=4"}},
	{name: "kinds", children: true, notLazy: true,
		features: []string{"filemap", "anonshared", "memfd", "locked:kib=64", "protected", "churn:threads=1,rate=500"}},
	{name: "reserved", notLazy: true, features: []string{"reserved:gib=256", "zeroread:mib=4", "mem:mib=4,rate=20,watch=no"}},
}

// possible says whether this machine has what the program needs. Where it does
// not, there is one world less to walk in.
func (world world) possible(t *testing.T) bool {
	t.Helper()
	if world.hugePages == 0 {
		return true
	}
	if *only != "" {
		require.HugePages(t, world.hugePages)
		return true
	}
	err := require.ReserveHugePages(t, world.hugePages)
	if err != nil {
		t.Logf("no walk in world %s: %v", world.name, err)
	}
	return err == nil
}

// wanted are the names of the moves that are made.
var wanted *regexp.Regexp

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
	wanted = regexp.MustCompile(*moves)
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
			t.Run(world.name, func(t *testing.T) {
				if !world.possible(t) {
					return
				}
				w := newWalk(t, world, rand.New(rand.NewPCG(seed, uint64(i))))
				end := time.Now().Add(*limit)
				for steps := 0; steps < usualSteps && time.Now().Before(end); steps++ {
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
			if !world.possible(t) {
				return
			}
			w := newWalk(t, world, rand.New(rand.NewPCG(seed, lap)))
			for steps := 0; steps < lapSteps && time.Now().Before(end); steps++ {
				w.step()
			}
		})
	}
}
