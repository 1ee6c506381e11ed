package stasis_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"stasis"
)

// program starts something to dump, in a session of its own, and returns its
// pid. The second function ends it, whatever became of it.
func program() (pid int, end func()) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	return cmd.Process.Pid, func() {
		_ = syscall.Kill(cmd.Process.Pid, syscall.SIGKILL)
		reap(cmd.Process.Pid)
	}
}

// reap collects a child that has ended, so that its pid is free.
func reap(pid int) { _, _ = syscall.Wait4(pid, nil, 0, nil) }

func folder() string {
	dir, err := os.MkdirTemp("", "stasis-example-")
	if err != nil {
		panic(err)
	}
	return dir
}

// Save a program, let it end, and bring it back.
func Example() {
	pid, end := program()
	defer end()
	dir := folder()
	defer os.RemoveAll(dir)

	ctx := context.Background()
	checkpoint := filepath.Join(dir, "one")
	if _, err := stasis.Dump(ctx, stasis.DumpOptions{PID: pid, Dir: checkpoint}); err != nil {
		panic(err)
	}
	reap(pid)
	back, err := stasis.Restore(ctx, stasis.RestoreOptions{Dir: checkpoint})
	if err != nil {
		panic(err)
	}
	fmt.Println("it has its pid again:", back.PID == pid)
	// Output: it has its pid again: true
}

// Copy most of the memory while the program works, so that the dump that ends it
// has little left to do.
func ExamplePreDump() {
	pid, end := program()
	defer end()
	dir := folder()
	defer os.RemoveAll(dir)

	ctx := context.Background()
	before, after := filepath.Join(dir, "pre"), filepath.Join(dir, "final")
	if _, err := stasis.PreDump(ctx, stasis.PreDumpOptions{PID: pid, Dir: before}); err != nil {
		panic(err)
	}
	result, err := stasis.Dump(ctx, stasis.DumpOptions{PID: pid, Dir: after, Parent: before})
	if err != nil {
		panic(err)
	}
	figures := result.Manifest.Figures
	fmt.Println("most of its memory is in the pre-dump:", figures.BytesReferenced > figures.BytesMemory/2)

	reap(pid)
	if _, err := stasis.Restore(ctx, stasis.RestoreOptions{Dir: after}); err != nil {
		panic(err)
	}
	// Output: most of its memory is in the pre-dump: true
}

// Save a program again and again while it works, each time only what it wrote,
// and go back to any of these moments.
func ExampleDump_chain() {
	pid, end := program()
	defer end()
	dir := folder()
	defer os.RemoveAll(dir)

	ctx := context.Background()
	parent := ""
	for i := range 3 {
		next := filepath.Join(dir, fmt.Sprint(i))
		if _, err := stasis.Dump(ctx, stasis.DumpOptions{
			PID: pid, Dir: next, Parent: parent, After: stasis.AfterRun, Track: true,
			Progress: func(p stasis.Progress) {
				if p.Step == stasis.StepFreeze && p.Done == 0 {
					fmt.Println("dump", i, "is at its freeze")
				}
			},
		}); err != nil {
			panic(err)
		}
		parent = next
	}

	_ = syscall.Kill(pid, syscall.SIGKILL)
	reap(pid)
	if _, err := stasis.Restore(ctx, stasis.RestoreOptions{Dir: filepath.Join(dir, "1"), Track: true}); err != nil {
		panic(err)
	}
	fmt.Println("back as it was at dump 1")
	// Output:
	// dump 0 is at its freeze
	// dump 1 is at its freeze
	// dump 2 is at its freeze
	// back as it was at dump 1
}

// Hand a checkpoint to somebody who has CRIU alone, and take one back.
func ExampleExport() {
	pid, end := program()
	defer end()
	dir := folder()
	defer os.RemoveAll(dir)

	ctx := context.Background()
	checkpoint, images, again := filepath.Join(dir, "one"), filepath.Join(dir, "images"), filepath.Join(dir, "again")
	if _, err := stasis.Dump(ctx, stasis.DumpOptions{PID: pid, Dir: checkpoint}); err != nil {
		panic(err)
	}
	reap(pid)
	exported, err := stasis.Export(ctx, stasis.ExportOptions{Dir: checkpoint, Out: images})
	if err != nil {
		panic(err)
	}
	fmt.Println(exported.Command[0], exported.Command[1], "restores it from", filepath.Base(exported.Out))

	imported, err := stasis.Import(ctx, stasis.ImportOptions{Path: images, Dir: again, Name: "again"})
	if err != nil {
		panic(err)
	}
	fmt.Println("imported as", imported.Manifest.Name, "with", len(imported.Manifest.Processes), "process")
	back, err := stasis.Restore(ctx, stasis.RestoreOptions{Dir: again})
	if err != nil {
		panic(err)
	}
	fmt.Println("it has its pid again:", back.PID == pid)
	// Output:
	// criu restore restores it from images
	// imported as again with 1 process
	// it has its pid again: true
}

// See which checkpoints there are, what builds on what, and whether they are
// whole.
func ExampleCheckpoints() {
	pid, end := program()
	defer end()
	dir := folder()
	defer os.RemoveAll(dir)

	ctx := context.Background()
	before, after := filepath.Join(dir, "pre"), filepath.Join(dir, "final")
	if _, err := stasis.PreDump(ctx, stasis.PreDumpOptions{PID: pid, Dir: before, Name: "monday"}); err != nil {
		panic(err)
	}
	if _, err := stasis.Dump(ctx, stasis.DumpOptions{PID: pid, Dir: after, Parent: before, Name: "tuesday"}); err != nil {
		panic(err)
	}
	reap(pid)

	list, err := stasis.Checkpoints(ctx, dir)
	if err != nil {
		panic(err)
	}
	for _, c := range list {
		fmt.Printf("%s: %s, %s, on top of %d, needed by %d\n", c.Name, c.Kind, c.State, c.Depth, len(c.Dependents))
	}
	if _, err := stasis.Verify(ctx, stasis.VerifyOptions{Dir: after}); err != nil {
		panic(err)
	}
	found, err := stasis.Inspect(ctx, after)
	if err != nil {
		panic(err)
	}
	fmt.Println("whole:", found.Manifest.Processes[0].Comm, found.Manifest.Processes[0].Cmdline)

	if err := os.RemoveAll(before); err != nil {
		panic(err)
	}
	_, err = stasis.Verify(ctx, stasis.VerifyOptions{Dir: after})
	fmt.Println("damaged without its parent:", errors.Is(err, stasis.ErrDamaged))
	// Output:
	// monday: pre-dump, whole, on top of 0, needed by 1
	// tuesday: full, whole, on top of 1, needed by 0
	// whole: sleep [sleep 1000]
	// damaged without its parent: true
}
