package stasis

import (
	"context"
	"time"
)

// PreDumpOptions says what to copy ahead of a dump. PID and Dir are needed;
// everything else has a default.
type PreDumpOptions struct {
	PID    int    // root of the tree
	Dir    string // folder of the pre-dump; made if its parent exists
	Name   string // for people; default: the command and the time
	Parent string // folder of the pre-dump or dump before this one; "": copy all memory

	Tracker string // as for a dump

	Streams     int    // number of shards; 0: one for each CPU
	Compression string // none, lz4, zstd, gzip or zlib; "": DefaultCompression
	Level       int    // of the codec; 0: its default

	// MaxRounds bounds how often memory is copied; 0: once. What is written
	// meanwhile is left to the next pre-dump or dump.
	MaxRounds int

	Progress func(Progress)   // as for a dump
	AtStep   func(Step) error // as for a dump
}

// PreDump copies the memory of a process tree while it runs, and keeps track of
// what is written from then on. A dump with it as DumpOptions.Parent copies only
// that, and takes a fraction of the time. The tree does not stand still, except
// for one thread of each process, which is stopped for less than a millisecond.
//
// A pre-dump holds memory alone and cannot be restored. When PreDump returns an
// error there is none, and the tree is as it was. The error wraps what that of
// [Dump] does.
func PreDump(ctx context.Context, opts PreDumpOptions) (_ *DumpResult, err error) {
	rounds := opts.MaxRounds
	setDefault(&rounds, 1)
	d := &dump{preDump: true, begun: time.Now(), opts: DumpOptions{
		PID: opts.PID, Dir: opts.Dir, Name: opts.Name, Parent: opts.Parent, Track: true, Tracker: opts.Tracker, After: AfterRun,
		Streams: opts.Streams, Compression: opts.Compression, Level: opts.Level, MaxRounds: rounds,
		Progress: opts.Progress, AtStep: opts.AtStep,
	}}
	d.dumpSpans(ctx)
	defer func() { d.endSpans(err) }()
	defer d.cleanUp()
	for _, step := range []struct {
		name Step
		work func() error
	}{
		{StepPrepare, func() error { return d.prepare(ctx) }},
		{StepArm, d.arm},
		{StepCopy, func() error { return d.copyRounds(ctx) }},
		{StepPublish, d.writePreDump},
	} {
		if err := d.do(step.name, step.work); err != nil {
			return nil, err
		}
	}
	d.keepTrackers()
	return d.result(), nil
}
