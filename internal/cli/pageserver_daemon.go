package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// startPageServer runs the same command again in the background, and returns when that listens.
func (a *app) startPageServer(f *pageServerFlags) error {
	if err := checkParent(f.dir); err != nil {
		return err
	}
	if err := os.Mkdir(f.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return badInput("%w", err)
	}
	if f.logFile == "" {
		f.logFile = "page-server.log"
	}
	path := f.inDir(f.logFile)
	log, err := os.Create(path)
	if err != nil {
		return badInput("--log-file: %w", err)
	}
	defer log.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	// Of a flag that is given twice, the last counts.
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:], "--daemon=false", "--status-fd=3")...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return fmt.Errorf("start the server in the background: %w", err)
	}
	if _, err := ready.Read(make([]byte, 1)); err == nil {
		if !a.quiet && a.output != outputJSON {
			fmt.Fprintf(a.results, "the page server runs in the background as process %d; its messages go to %s\n", cmd.Process.Pid, path)
		}
		return cmd.Process.Release()
	} else if !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the server in the background: %w", err)
	}
	err = cmd.Wait()
	if text, _ := os.ReadFile(path); len(text) > 0 { // what it said says more than its exit code
		fmt.Fprint(a.err, string(text))
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return exitStatus(exit.ExitCode())
		}
	}
	return fmt.Errorf("the server in the background ended: %s", strings.TrimSpace(fmt.Sprint(err)))
}
