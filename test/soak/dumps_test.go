package soak

import (
	"fmt"
	"sync"

	"stasis"
	"stasis/internal/testkit"
	"stasis/internal/track"
)

func (w *walk) dump() string     { w.t.Helper(); return w.dumpOn(w.parent(), stasis.AfterRun) }
func (w *walk) fullDump() string { w.t.Helper(); return w.dumpOn("", stasis.AfterRun) }

// codec is most often none, which is the fastest.
func (w *walk) codec() string {
	return []string{"none", "none", "lz4", "lz4", "zstd", "gzip", "zlib"}[w.random.IntN(7)]
}

// options are those that every dump has, and some of chance.
func (w *walk) options(l *link, parent string, after stasis.After) stasis.DumpOptions {
	return stasis.DumpOptions{
		PID: w.p.PID(), Dir: l.dir, Parent: parent, Track: w.random.IntN(8) > 0, After: after,
		Streams: 1 + w.random.IntN(8), MaxRounds: 1 + w.random.IntN(3), FinalBuffer: 1 << (18 + w.random.IntN(6)),
		Compression: w.codec(), Engine: w.engine(), Tracker: w.tracker(), AutoDedup: parent != "" && w.random.IntN(12) == 0,
	}
}

// engine is most often the usual one.
func (w *walk) engine() stasis.Engine {
	switch n := w.random.IntN(16); {
	case n < 2:
		return stasis.EngineCRIU
	case n < 4 && !w.world.notLazy:
		return stasis.EngineLazyPages
	}
	return stasis.EngineAuto
}

// tracker is most often the best one, else any that works here.
func (w *walk) tracker() string {
	if n := w.random.IntN(10); n < 2*len(trackers()) {
		return trackers()[n/2]
	}
	return ""
}

// trackers are those that work on this kernel. Soft-dirty bits that are known to
// be incomplete (docs/kernels.md) would not stand the walk.
var trackers = sync.OnceValue(func() (list []string) {
	for _, kind := range []track.Kind{track.KindUserfaultfd, track.KindSoftDirty, track.KindNone} {
		_, err := track.Choose(kind)
		if err == nil && kind == track.KindSoftDirty {
			err = track.SoftDirtyComplete()
		}
		if err == nil {
			list = append(list, string(kind))
		}
	}
	return list
})

func (w *walk) dumpOn(parent string, after stasis.After) string {
	w.t.Helper()
	return w.dumpWith(parent, after, nil)
}

// dumpWith is a dump during which something is done as its copy begins.
func (w *walk) dumpWith(parent string, after stasis.After, meanwhile func()) string {
	w.t.Helper()
	l := w.next()
	opts := w.options(l, parent, after)
	if meanwhile != nil {
		opts.AtStep = func(step stasis.Step) error {
			if step == stasis.StepCopy {
				meanwhile()
			}
			return nil
		}
	}
	testkit.Watch(w.p.PID())
	result, err := stasis.Dump(w.t.Context(), opts)
	if err != nil {
		w.t.Fatalf("dump %s on %q (engine %s, tracker %q): %v", l.dir, parent, opts.Engine, opts.Tracker, err)
	}
	w.add(l, result.Manifest)
	if after == stasis.AfterKill {
		testkit.WaitGone(w.t, l.pids)
	}
	if opts.AutoDedup {
		w.look()
	}
	return fmt.Sprintf("%s on %q, engine %s, tracker %q, track %t, dedup %t, %s, %d streams, notes %q",
		l.dir, parent, opts.Engine, opts.Tracker, opts.Track, opts.AutoDedup, opts.Compression, opts.Streams, result.Notes)
}

func (w *walk) preDump() string {
	w.t.Helper()
	parent := ""
	if w.random.IntN(4) > 0 {
		parent = w.parent()
	}
	l := w.next()
	l.preDump = true
	result, err := stasis.PreDump(w.t.Context(), stasis.PreDumpOptions{
		PID: w.p.PID(), Dir: l.dir, Parent: parent, Streams: 1 + w.random.IntN(8), MaxRounds: 1 + w.random.IntN(2), Compression: w.codec(),
	})
	if err != nil {
		w.t.Fatalf("pre-dump %s on %q: %v", l.dir, parent, err)
	}
	w.add(l, result.Manifest)
	return fmt.Sprintf("%s on %q", l.dir, parent)
}

func (w *walk) restore(lazy bool) string {
	w.t.Helper()
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
	result, err := stasis.Restore(w.t.Context(), stasis.RestoreOptions{Dir: l.dir, Lazy: lazy, Track: track})
	if err != nil {
		w.t.Fatalf("restore of %s (lazy %t, track %t): %v", l.dir, lazy, track, err)
	}
	w.isBack(l)
	return fmt.Sprintf("%s, track %t, warnings %q", l.dir, track, result.Warnings)
}

// isBack is the end of whatever brings a checkpoint back.
func (w *walk) isBack(l *link) {
	testkit.Watch(w.p.PID())
	l.rewind()
	l.rewind = w.p.Snapshot()
	w.backs++
}

// there is a dump with which the program ends, and its restore.
func (w *walk) there() string {
	w.t.Helper()
	what := w.dumpOn(w.parent(), stasis.AfterKill)
	return what + "; " + w.bringBack(w.links[len(w.links)-1], w.random.IntN(3) == 0)
}

func (w *walk) execute() string {
	w.t.Helper()
	if w.world.children {
		return ""
	}
	w.p.Exec(w.t)
	return "the same program"
}
