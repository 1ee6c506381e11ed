package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"stasis/bench/rig"
)

// checkpointer is one way to dump and restore the warehouse.
type checkpointer struct {
	dump, restore func(context.Context) (took time.Duration, err error)
	folder        string
}

// figures is what one way of dumping and restoring came to.
type figures struct {
	pause, dump, restore time.Duration
	memory, stored       int64 // bytes
}

// workTime is how long the program works on between a dump and its end, so that
// a restore visibly goes back to the dump.
const workTime = time.Second

// throughIt dumps the program while it works, lets it work on, kills it,
// restores it, and has it prove that all is there and goes on.
func (w *warehouse) throughIt(ctx context.Context, c checkpointer) (f figures, err error) {
	if f.memory, err = residentBytes(w.pid); err != nil {
		return f, err
	}
	if err := rig.Sync("."); err != nil { // nobody pays for what was written before
		return f, err
	}
	before, err := w.status(ctx)
	if err != nil {
		return f, err
	}
	if f.dump, err = c.dump(ctx); err != nil {
		return f, err
	}
	dumped, err := w.status(ctx)
	if err != nil {
		return f, err
	}
	f.pause = time.Duration(dumped.Standstill) * time.Microsecond
	if f.stored, err = listFolder(c.folder); err != nil {
		return f, err
	}
	say("Move %d before the dump, %d after it; its longest standstill was %s.", before.Moves, dumped.Moves, short(f.pause))

	if err := sleep(ctx, workTime); err != nil {
		return f, err
	}
	last, err := w.verify(ctx)
	if err != nil {
		return f, err
	}
	command("kill", "-9", strconv.Itoa(w.pid))
	if err := rig.End(w.pid); err != nil {
		return f, err
	}
	if _, err := w.status(ctx); err == nil {
		return f, errors.New("the warehouse answers although it was killed")
	}
	say("Killed at move %d.", last.Moves)

	if err := rig.WarmCache(c.folder); err != nil { // both restore from RAM
		return f, err
	}
	if f.restore, err = c.restore(ctx); err != nil {
		return f, err
	}
	return f, w.goesOn(ctx, before.Moves, last.Moves)
}

// goesOn checks a restored program: it has what it had when it was dumped, which
// was between two moves, and works.
func (w *warehouse) goesOn(ctx context.Context, from, to int64) error {
	back, err := w.status(ctx)
	if err != nil {
		return err
	}
	if back.Moves < from || back.Moves > to {
		return fmt.Errorf("the restored warehouse is at move %d; it was dumped between %d and %d", back.Moves, from, to)
	}
	verified, err := w.verify(ctx)
	if err != nil {
		return err
	}
	say("Restored, it went on from where it was dumped: move %d.", back.Moves)
	if err := sleep(ctx, workTime); err != nil {
		return err
	}
	later, err := w.verify(ctx)
	if err != nil {
		return err
	}
	if later.Moves <= verified.Moves {
		return fmt.Errorf("the restored warehouse stands still at move %d", later.Moves)
	}
	say("A second later: move %d. All %d items and their sums were checked, twice: nothing is lost.", later.Moves, later.Items)
	return nil
}

// dumpStasis dumps with the command, whose summary the reader sees.
func dumpStasis(ctx context.Context, stasis string, pid int, dir string) (time.Duration, error) {
	return runCommand(ctx, stasis, "dump", "process", strconv.Itoa(pid), "--stream", "4", "--leave-running", "--dir", dir)
}

func restoreStasis(ctx context.Context, stasis, dir string) (time.Duration, error) {
	return runCommand(ctx, stasis, "restore", "process", "--path", dir, "--detach")
}

func runCommand(ctx context.Context, name string, args ...string) (time.Duration, error) {
	command(name, args...)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// Ask first: stasis then undoes what it did.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	begun := time.Now()
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return time.Since(begun), err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
