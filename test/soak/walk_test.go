package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"stasis"
	"stasis/internal/testkit"
)

// walk is one random walk under way.
type walk struct {
	t      *testing.T
	random *rand.Rand
	p      *testkit.Subject
	world  world

	room   string
	made   int
	links  []*link
	log    []string // what was done, for a failure
	done   map[string]int
	dumps  int // that succeeded, with pre-dumps
	backs  int // restores that succeeded
	proven int64
}

// link is a checkpoint, or a pre-dump.
type link struct {
	dir     string
	preDump bool
	pids    []int
	rewind  func()
}

func newWalk(t *testing.T, world world, random *rand.Rand) *walk {
	t.Helper()
	w := &walk{t: t, random: random, p: testkit.StartSubject(t, world.features...), world: world, room: t.TempDir(), done: map[string]int{}}
	testkit.WatchSession(w.p.PID())
	t.Cleanup(func() {
		_ = stasis.StopTracker(w.p.PID())
		if t.Failed() {
			t.Logf("the program: %s", testkit.HowIs(w.p.PID()))
			for i, line := range w.log {
				t.Logf("step %d: %s", i, line)
			}
			answers, _ := os.ReadFile(filepath.Join(w.p.Dir, "answers"))
			t.Logf("the program said last: %s", answers[max(0, len(answers)-500):])
		}
		t.Logf("%d steps, %d dumps, %d restores, %d pages proven: %v", len(w.log), w.dumps, w.backs, w.proven, w.done)
	})
	return w
}

// move is something that a step can do. It returns what it did, or "" where it
// is not possible now.
type move struct {
	name   string
	weight int
	do     func() string
	long   bool // only with -duration: what it finds is not all mended yet
}

func (w *walk) moves() []move {
	return []move{
		{name: "dump", weight: 30, do: w.dump},
		{name: "pre-dump", weight: 14, do: w.preDump},
		{name: "full dump", weight: 5, do: w.fullDump},
		{name: "kill and restore", weight: 18, do: func() string { return w.restore(false) }},
		{name: "kill and restore lazily", weight: 10, do: func() string { return w.restore(true) }},
		{name: "dump that ends it, and restore", weight: 14, do: w.there},
		{name: "exec", weight: 3, do: w.execute},

		{name: "remove", weight: 3, do: w.remove},
		{name: "prune", weight: 2, do: w.prune},
		{name: "prune beside a dump", weight: 2, do: w.pruneBeside},
		{name: "dedup", weight: 2, do: func() string { return w.dedup(false) }},
		{name: "thorough dedup", weight: 1, do: func() string { return w.dedup(true) }},
		{name: "compact", weight: 3, do: w.compact},
		{name: "verify", weight: 2, do: w.verify},
		{name: "export, and restore by stock CRIU", weight: 3, do: w.export},
		{name: "export and import", weight: 2, do: w.roundabout},
		{name: "dump by stock CRIU, and import", weight: 2, do: w.importStock},

		{name: "failing dump", weight: 5, do: w.fail},
		{name: "killed dump", weight: 4, do: w.killedDump},
		{name: "killed restore", weight: 3, do: w.killedRestore},
		{name: "two dumps at once", weight: 2, do: w.twoAtOnce},
		{name: "tracker killed", weight: 3, do: w.killTracker},
		{name: "somebody else's userfaultfd", weight: 2, do: w.foreign, long: true},
		{name: "parent damaged", weight: 3, do: w.damage},
		{name: "parent gone", weight: 2, do: w.gone},
	}
}

func (w *walk) step() {
	w.t.Helper()
	if len(w.links) >= longest {
		w.startAnew()
	}
	moves := slices.DeleteFunc(w.moves(), func(m move) bool { return m.long && *duration == 0 || !wanted.MatchString(m.name) })
	total := 0
	for _, m := range moves {
		total += m.weight
	}
	at := w.random.IntN(total)
	for _, m := range moves {
		if at -= m.weight; at < 0 {
			w.log = append(w.log, m.name)
			what := m.do()
			if what == "" {
				w.log = w.log[:len(w.log)-1]
				return
			}
			w.done[m.name]++
			w.log[len(w.log)-1] += ": " + what
			break
		}
	}
	w.prove()
	if w.random.IntN(2) == 0 {
		w.p.Work(w.t)
		w.prove()
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// prove lets the program look at all of its memory.
func (w *walk) prove() {
	w.t.Helper()
	a := w.p.Check(w.t)
	if !a.OK {
		w.t.Fatalf("subject: %s", a.Text)
	}
	w.proven += a.Has["proven"]
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

// parent chooses what to dump on; "" where there is nothing.
func (w *walk) parent() string {
	if l := w.pick(anyLink); l != nil {
		return l.dir
	}
	return ""
}

func anyLink(*link) bool      { return true }
func restorable(l *link) bool { return !l.preDump }

func (w *walk) next() *link {
	w.made++
	return &link{dir: filepath.Join(w.room, fmt.Sprint(w.made)), rewind: w.p.Snapshot()}
}

// add is the end of whatever makes a checkpoint.
func (w *walk) add(l *link, m *stasis.Manifest) {
	for _, p := range m.Processes {
		l.pids = append(l.pids, p.PID)
	}
	w.links = append(w.links, l)
	w.dumps++
}

// look takes out of the list what is no checkpoint any more.
func (w *walk) look() {
	var list []*link
	for _, l := range w.links {
		_, gone := os.Stat(filepath.Join(l.dir, "manifest.json"))
		_, whole := os.Stat(filepath.Join(l.dir, "deduplicated.json"))
		if gone == nil && whole != nil {
			list = append(list, l)
		}
	}
	w.links = list
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
