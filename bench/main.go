// Command bench measures Stasis beside stock CRIU, on the same programs, on the
// same disk, in the same run.
//
//	go run ./bench [-small] [-run REGEXP] [-update]
//
// It prints a table and writes out/bench.json and out/bench.svg; -update copies
// both to docs/ and puts the table into README.md. It needs root, CRIU, gcc and
// redis-server, and at full size 20 GiB of memory and 12 GiB of disk.
//
// Words: a measurement starts a program, does something to it several times and
// gives rows; a row holds what Stasis needed, what CRIU (or the machine at its
// best) needed, and targets. Each dump and restore of ours runs in a worker, a
// process of its own, as bin/stasis is one; its whole life is measured. The
// program that is dumped proves after the dump and after each restore that its
// memory is right: a fast wrong restore counts as an error.
//
// Everything runs one after the other, in one goroutine, except for the load on
// Redis.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"stasis/bench/rig"
)

func main() {
	if text, ok := os.LookupEnv(workerVariable); ok {
		if err := workerMain(text); err != nil {
			fmt.Fprintln(os.Stderr, "bench worker:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	small := flag.Bool("small", false, "tiny sizes, in under a minute: shows that everything works, not how fast")
	pattern := flag.String("run", "", "only the measurements whose names match this regular expression")
	update := flag.Bool("update", false, "copy the results to docs/ and the table into README.md")
	out := flag.String("out", "out", "folder for the results and, while it runs, for the checkpoints")
	flag.Parse()
	only, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if *update && (*small || *pattern != "") {
		return errors.New("-update needs a full run: leave out -small and -run")
	}
	b, err := newBench(ctx, *small, *out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.stalls, err = watchStalls(ctx); err != nil {
		return err
	}
	defer b.stalls.end()

	r := &report{Taken: time.Now().UTC().Truncate(time.Second), Small: *small, Machine: thisMachine(b.stock)}
	fmt.Printf("%s\nload average %s\n", r.Machine.describe(), r.Machine.Load)
	if err := b.warmUp(ctx); err != nil {
		return err
	}
	rows, failed := b.runAll(ctx, only)
	r.Rows = rows
	if len(rows) == 0 {
		return errors.Join(failed, errors.New("nothing was measured"))
	}
	fmt.Println()
	if err := errors.Join(r.table(os.Stdout), r.write(*out)); err != nil {
		return err
	}
	if *update && failed == nil {
		return errors.Join(r.write("docs"), r.updateReadme("README.md"))
	}
	return failed
}

// newBench prepares a run: a folder for its checkpoints and the program.
func newBench(ctx context.Context, small bool, out string) (*bench, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("checkpoints need root: run this as root")
	}
	b := &bench{
		small: small, log: os.Stderr, rate: 100, ours: 5, others: 2,
		sizes: []int64{50 << 20, 1 << 30, 4 << 30},
	}
	if small {
		b.sizes, b.ours, b.others = []int64{8 << 20, 16 << 20, 64 << 20}, 2, 1
	}
	var err error
	if b.stock, err = rig.FindStock(ctx); err != nil {
		return nil, err
	}
	if err := rig.Adopt(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp(out, "bench-"); err != nil {
		return nil, err
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return nil, err
	}
	if b.program, err = buildSubject(ctx, b.dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.dir))
	}
	return b, nil
}
