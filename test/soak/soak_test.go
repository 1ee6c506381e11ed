// Package soak takes programs on random walks through chains of checkpoints:
// each step is a dump on top of any earlier one, a pre-dump, a restore of any of
// them in place of the program, or a mishap. After each step all memory has to
// prove itself. It has only tests.
//
// What is done follows from a seed, which is printed; what the program does
// meanwhile does not.
package soak

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/chain"
	"stasis/internal/keeper"
	"stasis/internal/require"
	"stasis/internal/testkit"
)

var (
	duration = flag.Duration("duration", 0, "how long to walk, all worlds together; 0: a fixed number of steps")
	seedFlag = flag.Uint64("seed", 0, "of the walks; 0: the usual one, or with -duration one of chance")
)

const (
	usualSteps = 12 // of each world
	usualSeed  = 3
	// limit is how many checkpoints there are before the walk begins a new chain.
	limit = 16
)

// worlds are programs whose memory differs in kind. An exec is only for one
// without children.
var worlds = []struct {
	name     string
	features []string
	exec     bool
}{
	{"churn", []string{"churn:threads=2,rate=3000", "mem:mib=4,rate=30,writers=2,touched=60,watch=no"}, true},
	{"forks", []string{"mem:mib=2,rate=10,watch=no", "tree:mib=2,children=2,grandchildren=1", "threads:count=4"}, false},
	{"huge", []string{"mem:mib=8,rate=20,thp=yes,touched=90,watch=no", "advised", "deepstack:kib=512"}, false},
	{"direct", []string{"direct:mib=8,file=8,threads=4"}, false},
	{"kinds", []string{"filemap", "anonshared", "memfd", "locked:kib=64", "protected", "churn:threads=1,rate=500"}, false},
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
	if *duration == 0 {
		for i, world := range worlds {
			t.Run(world.name, func(t *testing.T) {
				w := newWalk(t, world.features, world.exec, rand.New(rand.NewPCG(seed, uint64(i))))
				for range usualSteps {
					w.step()
				}
			})
		}
		return
	}
	for end, lap := time.Now().Add(*duration), uint64(0); time.Now().Before(end) && !t.Failed(); lap++ {
		world := worlds[lap%uint64(len(worlds))]
		t.Run(fmt.Sprintf("%s-%d", world.name, lap), func(t *testing.T) {
			w := newWalk(t, world.features, world.exec, rand.New(rand.NewPCG(seed, lap)))
			for steps := 0; steps < 250 && time.Now().Before(end); steps++ {
				w.step()
			}
		})
	}
}

// walk is one random walk under way.
type walk struct {
	t      *testing.T
	random *rand.Rand
	p      *testkit.Subject
	exec   bool

	room  string
	made  int
	links []*link
	log   []string // what was done, for a failure
	done  map[string]int
}

// link is a checkpoint, or a pre-dump.
type link struct {
	dir     string
	preDump bool
	rewind  func()
}

func newWalk(t *testing.T, features []string, exec bool, random *rand.Rand) *walk {
	t.Helper()
	w := &walk{t: t, random: random, p: testkit.StartSubject(t, features...), exec: exec, room: t.TempDir(), done: map[string]int{}}
	t.Cleanup(func() {
		_ = stasis.StopTracker(w.p.PID())
		if t.Failed() {
			for i, line := range w.log {
				t.Logf("step %d: %s", i, line)
			}
		}
		t.Logf("%d steps: %v", len(w.log), w.done)
	})
	return w
}

func (w *walk) step() {
	w.t.Helper()
	if len(w.links) >= limit {
		w.startAnew()
	}
	moves := []struct {
		name   string
		weight int
		move   func() string
	}{
		{"dump", 40, w.dump},
		{"pre-dump", 15, w.preDump},
		{"full dump", 6, w.fullDump},
		{"kill and restore", 20, func() string { return w.restore(false) }},
		{"kill and restore lazily", 7, func() string { return w.restore(true) }},
		{"dump that ends it, and restore", 6, w.there},
		{"failing dump", 6, w.fail},
		{"remove", 4, w.remove},
		{"tracker killed", 3, w.killTracker},
		{"exec", 3, w.execute},
	}
	total := 0
	for _, m := range moves {
		total += m.weight
	}
	at := w.random.IntN(total)
	for _, m := range moves {
		if at -= m.weight; at < 0 {
			what := m.move()
			if what == "" {
				return // not possible now
			}
			w.done[m.name]++
			w.log = append(w.log, m.name+": "+what)
			break
		}
	}
	w.p.Prove(w.t)
	if w.random.IntN(2) == 0 {
		w.p.Work(w.t)
		w.p.Prove(w.t)
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// pick chooses a checkpoint, most often the newest; nil where there is none.
func (w *walk) pick(fit func(*link) bool) *link {
	var list []*link
	for _, l := range w.links {
		if fit(l) {
			list = append(list, l)
		}
	}
	if len(list) == 0 {
		return nil
	}
	if w.random.IntN(10) < 6 {
		return list[len(list)-1]
	}
	return list[w.random.IntN(len(list))]
}

func anyLink(*link) bool      { return true }
func restorable(l *link) bool { return !l.preDump }

func (w *walk) next() *link {
	w.made++
	return &link{dir: filepath.Join(w.room, fmt.Sprint(w.made)), rewind: w.p.Snapshot()}
}

func (w *walk) dump() string {
	if parent := w.pick(anyLink); parent != nil {
		return w.dumpOn(parent.dir, stasis.AfterRun)
	}
	return w.fullDump()
}

func (w *walk) fullDump() string { return w.dumpOn("", stasis.AfterRun) }

// options are those that every dump has, and some of chance.
func (w *walk) options(l *link, parent string, after stasis.After) stasis.DumpOptions {
	return stasis.DumpOptions{
		PID: w.p.PID(), Dir: l.dir, Parent: parent, Track: w.random.IntN(8) > 0, After: after,
		Streams: 1 + w.random.IntN(3), MaxRounds: 1 + w.random.IntN(3), FinalBuffer: 1 << (18 + w.random.IntN(6)),
		Compression: []string{"none", "lz4", "zstd"}[w.random.IntN(3)],
		Engine:      w.engine(),
	}
}

// engine is nearly always the usual one. The lazy one breaks up shared pages.
func (w *walk) engine() stasis.Engine {
	if w.random.IntN(12) == 0 {
		return stasis.EngineCRIU
	}
	return stasis.EngineAuto
}

func (w *walk) dumpOn(parent string, after stasis.After) string {
	w.t.Helper()
	l := w.next()
	opts := w.options(l, parent, after)
	testkit.Watch(w.p.PID())
	tree := testkit.Tree(w.p.PID())
	result, err := stasis.Dump(w.t.Context(), opts)
	if err != nil {
		w.t.Fatalf("dump %s on %q (engine %s): %v", l.dir, parent, opts.Engine, err)
	}
	if after == stasis.AfterKill {
		testkit.WaitGone(w.t, tree)
	}
	w.links = append(w.links, l)
	return fmt.Sprintf("%s on %q, engine %s, track %t, notes %q", l.dir, parent, opts.Engine, opts.Track, result.Notes)
}

func (w *walk) preDump() string {
	w.t.Helper()
	parent := ""
	if l := w.pick(anyLink); l != nil && w.random.IntN(4) > 0 {
		parent = l.dir
	}
	l := w.next()
	l.preDump = true
	_, err := stasis.PreDump(w.t.Context(), stasis.PreDumpOptions{
		PID: w.p.PID(), Dir: l.dir, Parent: parent, Streams: 1 + w.random.IntN(3), MaxRounds: 1 + w.random.IntN(2),
	})
	if err != nil {
		w.t.Fatalf("pre-dump %s on %q: %v", l.dir, parent, err)
	}
	w.links = append(w.links, l)
	return fmt.Sprintf("%s on %q", l.dir, parent)
}

func (w *walk) restore(lazy bool) string {
	l := w.pick(restorable)
	if l == nil {
		return ""
	}
	testkit.Kill(w.t, w.p.PID())
	return w.bringBack(l, lazy)
}

func (w *walk) bringBack(l *link, lazy bool) string {
	w.t.Helper()
	track := w.random.IntN(3) > 0
	if _, err := stasis.Restore(w.t.Context(), stasis.RestoreOptions{Dir: l.dir, Lazy: lazy, Track: track}); err != nil {
		w.t.Fatalf("restore of %s: %v", l.dir, err)
	}
	testkit.Watch(w.p.PID())
	l.rewind()
	l.rewind = w.p.Snapshot()
	return fmt.Sprintf("%s, track %t", l.dir, track)
}

// there is a dump with which the program ends, and its restore.
func (w *walk) there() string {
	parent := ""
	if l := w.pick(anyLink); l != nil {
		parent = l.dir
	}
	what := w.dumpOn(parent, stasis.AfterKill)
	return what + "; " + w.bringBack(w.links[len(w.links)-1], w.random.IntN(3) == 0)
}

// fail lets a dump fail at a step of chance.
func (w *walk) fail() string {
	w.t.Helper()
	parent := ""
	if l := w.pick(anyLink); l != nil {
		parent = l.dir
	}
	steps := []stasis.Step{stasis.StepArm, stasis.StepCopy, stasis.StepFreeze, stasis.StepState, stasis.StepWrite, stasis.StepPublish}
	at := steps[w.random.IntN(len(steps))]
	opts := w.options(w.next(), parent, stasis.AfterRun)
	opts.AtStep = func(step stasis.Step) error {
		if step == at {
			return fmt.Errorf("broken on purpose at %s", step)
		}
		return nil
	}
	if _, err := stasis.Dump(w.t.Context(), opts); err == nil {
		w.t.Fatalf("a dump that is broken at %s succeeds", at)
	}
	return fmt.Sprintf("on %q at %s", parent, at)
}

// remove deletes a checkpoint, which others may build on.
func (w *walk) remove() string {
	w.t.Helper()
	if len(w.links) == 0 {
		return ""
	}
	i := w.random.IntN(len(w.links))
	dir := w.links[i].dir
	if _, err := chain.Remove([]string{dir}, chain.Options{}); err != nil {
		w.t.Fatalf("remove %s: %v", dir, err)
	}
	w.links = append(w.links[:i], w.links[i+1:]...)
	return dir
}

func (w *walk) killTracker() string {
	w.t.Helper()
	list, err := keeper.List()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, k := range list {
		if k.Root == w.p.PID() {
			if err := unix.Kill(k.Keeper, unix.SIGKILL); err != nil {
				w.t.Fatal(err)
			}
			return fmt.Sprint(k.Keeper)
		}
	}
	return ""
}

func (w *walk) execute() string {
	w.t.Helper()
	if !w.exec {
		return ""
	}
	w.p.Exec(w.t)
	return "the same program"
}

// startAnew removes all checkpoints; the program goes on.
func (w *walk) startAnew() {
	w.t.Helper()
	if err := os.RemoveAll(w.room); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Mkdir(w.room, 0o700); err != nil {
		w.t.Fatal(err)
	}
	w.links = nil
	w.log = append(w.log, "all checkpoints are removed")
}
