package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"stasis/bench/rig"
)

// bench is one run of the benchmark.
type bench struct {
	small   bool
	sizes   []int64 // small, middle, large, in bytes
	ours    int     // runs of Stasis in each measurement
	others  int     // runs of what it is compared with
	rate    int     // MB/s that the program writes
	dir     string  // everything is below it
	program string  // the subject
	stock   *rig.Stock
	stalls  *stalls   // of the machine, all the time
	log     io.Writer // tells people what is going on
	made    int       // how many checkpoints there have been, for their names
}

// measurement gives some rows.
type measurement struct {
	name string
	run  func(context.Context) ([]*row, error)
}

// measurements lists everything there is to measure, in the order of the table.
func (b *bench) measurements() []measurement {
	var list []measurement
	for _, size := range b.sizes {
		list = append(list, measurement{"pause/" + compact(size), func(ctx context.Context) ([]*row, error) { return b.pause(ctx, size) }})
	}
	large := b.sizes[len(b.sizes)-1]
	list = append(list,
		measurement{"dump/" + compact(large), func(ctx context.Context) ([]*row, error) { return b.wholeDump(ctx, large) }},
		measurement{"codec/" + compact(large), func(ctx context.Context) ([]*row, error) { return b.compressedDump(ctx, large) }})
	for _, size := range b.sizes {
		list = append(list, measurement{"restore/" + compact(size), func(ctx context.Context) ([]*row, error) { return b.restores(ctx, size) }})
	}
	list = append(list, measurement{"chain/" + compact(large), func(ctx context.Context) ([]*row, error) { return b.chain(ctx, large) }})
	for _, percent := range writtenParts {
		list = append(list, measurement{fmt.Sprintf("changed/%d%%", percent), func(ctx context.Context) ([]*row, error) { return b.changed(ctx, large, percent) }})
	}
	return append(list,
		measurement{"tracking/" + compact(large), func(ctx context.Context) ([]*row, error) { return b.tracking(ctx, large) }},
		measurement{"tracking-cpu/" + compact(large), func(ctx context.Context) ([]*row, error) { return b.trackingLoad(ctx, large) }},
		measurement{"long-chain/" + compact(b.sizes[0]), func(ctx context.Context) ([]*row, error) { return b.longChain(ctx, b.sizes[0]) }},
		measurement{"memory/" + compact(large), func(ctx context.Context) ([]*row, error) { return b.memory(ctx, large) }},
		measurement{"redis", b.redis})
}

// runAll runs the measurements whose names match. One that fails does not keep
// the others from running.
func (b *bench) runAll(ctx context.Context, only *regexp.Regexp) (rows []*row, failed error) {
	for _, m := range b.measurements() {
		if !only.MatchString(m.name) {
			continue
		}
		if ctx.Err() != nil {
			return rows, ctx.Err()
		}
		fmt.Fprintf(b.log, "%s\n", m.name)
		if busy := busyCPUs(); busy > busyLimit {
			fmt.Fprintf(b.log, "  warning: something else uses %.1f CPUs; these numbers will be noisy\n", busy)
		}
		found, err := m.run(ctx)
		if err != nil {
			fmt.Fprintf(b.log, "  failed: %v\n", err)
			failed = fmt.Errorf("%s: %w", m.name, err)
			continue
		}
		rows = append(rows, found...)
	}
	return rows, failed
}

// target adds targets to a row. They are for the full size on a machine like
// the one the targets were set for; small runs have none.
func (b *bench) target(r *row, add func(*row)) *row {
	r.finish()
	if !b.small {
		add(r)
	}
	return r
}

// folder is a name for a new checkpoint.
func (b *bench) folder() string {
	b.made++
	return filepath.Join(b.dir, fmt.Sprintf("checkpoint-%d", b.made))
}

// remove removes a checkpoint. What stays behind goes with the folder of the run.
func (b *bench) remove(dir string) { _ = os.RemoveAll(dir) }

// start starts the program.
func (b *bench) start(ctx context.Context, size int64, rate int, more ...string) (*subject, error) {
	return startSubject(ctx, b.program, filepath.Join(b.dir, "program"), size, rate, more...)
}

// warmUp uses memory once: on a virtual machine the first use of each page is
// several times as slow as the next.
func (b *bench) warmUp(ctx context.Context) error {
	if b.small {
		return nil
	}
	large, free := b.sizes[len(b.sizes)-1], availableMemory()
	if free < 5*large {
		fmt.Fprintf(b.log, "warning: %s of memory are available; a full run should have %s\n", spaced(free), spaced(5*large))
	}
	// Half of what is free leaves room for others who take memory now.
	_, err := work(ctx, job{Do: "populate", Bytes: min(3*large, free/2)})
	return err
}

// quiet waits for earlier writes, so that they cost the next run nothing.
func (b *bench) quiet() error { return rig.Sync(b.dir) }

// compact is a size without a blank: 50MiB, 4GiB.
func compact(bytes int64) string {
	if bytes >= 1<<30 {
		return fmt.Sprintf("%.3gGiB", float64(bytes)/(1<<30))
	}
	return fmt.Sprintf("%dMiB", bytes>>20)
}

// spaced is a size for people: 50 MiB, 4 GiB.
func spaced(bytes int64) string {
	text := compact(bytes)
	return text[:len(text)-3] + " " + text[len(text)-3:]
}
