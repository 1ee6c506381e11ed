// Command demo shows what Stasis does on a program at work: dump it, kill it,
// restore it, see it go on; then the same with plain CRIU, and the figures of
// both. scripts/demo builds and starts it.
//
//	demo -stasis bin/stasis -warehouse PROGRAM -dir DIR
//
// Words: the warehouse is the program that is dumped (examples/warehouse); a
// standstill is a time in which it did not run, by its own clock.
//
// Everything runs in one goroutine. Whatever happens, the warehouse is ended and
// its pid waited for; the folder is the caller's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis/bench/rig"
)

// limit is how long all of it may take; it needs some ten seconds.
const limit = 10 * time.Minute

func main() {
	stasis := flag.String("stasis", "bin/stasis", "the stasis command")
	program := flag.String("warehouse", "", "the program to dump")
	dir := flag.String("dir", "", "an empty folder to work in")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, *stasis, *program, *dir); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(err, cause)
		}
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stasis, program, dir string) (err error) {
	// What the shell has left open would get into the warehouse and into its checkpoint, and may be of another mount namespace.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close what was inherited: %w", err)
	}
	if err := rig.Adopt(); err != nil {
		return err
	}
	stock, err := rig.FindStock(ctx)
	if err != nil {
		return err
	}
	title("A program at work")
	w, err := openWarehouse(ctx, program, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rig.End(w.pid)) }()
	now, err := w.status(ctx)
	if err != nil {
		return err
	}
	say("A warehouse, process %d, moves goods 5000 times a second among %d items: %d MiB.", w.pid, now.Items, now.Bytes>>20)

	title("Stasis")
	ours := filepath.Join(dir, "checkpoint")
	s, err := w.throughIt(ctx, checkpointer{
		dump:    func(ctx context.Context) (time.Duration, error) { return dumpStasis(ctx, stasis, w.pid, ours) },
		restore: func(ctx context.Context) (time.Duration, error) { return restoreStasis(ctx, stasis, ours) },
		folder:  ours,
	})
	if err != nil {
		return fmt.Errorf("stasis: %w", err)
	}
	title("The same with plain CRIU " + stock.Version)
	theirs := filepath.Join(dir, "criu")
	c, err := w.throughIt(ctx, checkpointer{
		dump: func(ctx context.Context) (time.Duration, error) {
			command("criu", "dump", "--tree", fmt.Sprint(w.pid), "--images-dir", theirs, "--leave-running", "&&", "sync")
			return stock.Dump(ctx, w.pid, theirs, "--leave-running")
		},
		restore: func(ctx context.Context) (time.Duration, error) {
			command("criu", "restore", "--images-dir", theirs, "--restore-detached")
			return stock.Restore(ctx, theirs)
		},
		folder: theirs,
	})
	if err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	title("Side by side")
	say("")
	return sideBySide(os.Stdout, s, c)
}
