package faults

import (
	"bufio"
	gocontext "context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/proc"
)

// holderSource is a program that holds a pid until its standard input ends.
const holderSource = `
#define _GNU_SOURCE
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	pid_t want = atoi(argv[1]);
	struct clone_args args = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&want, .set_tid_size = 1 };
	pid_t got = syscall(SYS_clone3, &args, sizeof(args));
	if (got == 0)
		for (;;)
			pause();
	if (got != want) {
		perror("clone3");
		return 1;
	}
	puts("held");
	fflush(stdout);
	char end;
	while (read(0, &end, 1) > 0)
		;
	kill(got, SIGKILL);
	return waitpid(got, NULL, 0) != got;
}
`

// buildHolder compiles that program.
func buildHolder(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "holder")
	gcc := exec.Command("gcc", "-x", "c", "-o", path, "-")
	gcc.Stdin = strings.NewReader(holderSource)
	if out, err := gcc.CombinedOutput(); err != nil {
		t.Fatalf("compile the holder of a pid: %v\n%s", err, out)
	}
	return path
}

// hold takes a pid or thread id until the returned function is called.
func hold(t *testing.T, program string, number int) (release func() error) {
	t.Helper()
	cmd := exec.Command(program, strconv.Itoa(number))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("nobody holds %d: %q, %v, %v", number, line, err, cmd.Wait())
	}
	return func() error {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		return cmd.Wait()
	}
}

// TestNumberTakenInBetween: a number that was free when the restore looked for it is another process' when CRIU needs it, and free
// again soon. The restore begins anew, and the program notices nothing.
func TestNumberTakenInBetween(t *testing.T) {
	holder := buildHolder(t)
	s := newSceneOf(t, "threads:count=4", "mem:mib=16,rate=20,watch=no")
	root, err := proc.ReadTask(s.p.PID())
	if err != nil {
		t.Fatal(err)
	}
	if len(root.Threads) < 3 {
		t.Fatalf("the program has the threads %v", root.Threads)
	}
	for _, test := range []struct {
		name   string
		number int
		lazy   bool
	}{
		{"pid", root.PID, false},
		{"thread", root.Threads[len(root.Threads)-1], false},
		{"thread, lazy", root.Threads[1], true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := s.in(t)
			s.newDir()
			s.dump(stasis.AfterKill)
			s.gone()
			var release func() error
			checks := 0
			_, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: s.dir, Lazy: test.lazy, AtStep: func(at stasis.Step) error {
				switch at {
				case stasis.StepRestore:
					release = hold(t, holder, test.number)
				case stasis.StepCheck:
					if checks++; checks == 2 { // CRIU has failed
						return release()
					}
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			if checks != 2 {
				t.Errorf("it was looked for the numbers %d times: nothing was in the way", checks)
			}
			s.look()
			s.unharmed()
		})
	}
}

// TestNumberTakenAgainAndAgain: the restore gives up in the end, and nothing is left.
func TestNumberTakenAgainAndAgain(t *testing.T) {
	holder := buildHolder(t)
	s := newSceneOf(t, "threads:count=4", "mem:mib=16,rate=20,watch=no")
	s.dump(stasis.AfterKill)
	s.gone()
	var release func() error
	tries := 0
	_, err := stasis.Restore(context(), stasis.RestoreOptions{Dir: s.dir, AtStep: func(at stasis.Step) error {
		switch at {
		case stasis.StepCheck:
			if release != nil { // CRIU has failed
				tries++
				return release()
			}
		case stasis.StepUnpack:
			release = hold(t, holder, s.p.PID())
		}
		return nil
	}})
	if err == nil || !strings.Contains(err.Error(), "a pid of the tree is in use") {
		t.Fatalf("the restore says %v", err)
	}
	if tries != 3 {
		t.Errorf("it began anew %d times, want 3", tries)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	s.gone()
	s.restore(false)
}

// TestNumberTakenByAChildOfTheCaller: the pid of the root is that of a child of the library's caller, which has ended. It is left to the
// caller, who has to collect it.
func TestNumberTakenByAChildOfTheCaller(t *testing.T) {
	s := newSceneOf(t, "mem:mib=16,rate=20,watch=no")
	s.dump(stasis.AfterKill)
	s.gone()
	const status = 7
	pid, checks := s.p.PID(), 0
	ctx, cancel := gocontext.WithCancel(context())
	defer cancel()
	_, err := stasis.Restore(ctx, stasis.RestoreOptions{Dir: s.dir, AtStep: func(at stasis.Step) error {
		switch at {
		case stasis.StepRestore:
			return childThatEnds(pid, status)
		case stasis.StepCheck:
			if checks++; checks == 2 { // CRIU has failed
				cancel() // it is looked at the number once more, and not waited for it
			}
		}
		return nil
	}})
	if err == nil || checks != 2 {
		t.Fatalf("the restore says %v, after it has looked for the numbers %d times", err, checks)
	}
	var ended unix.WaitStatus
	if got, err := unix.Wait4(pid, &ended, unix.WNOHANG, nil); got != pid || ended.ExitStatus() != status {
		t.Errorf("the caller's child %d is gone: %d, %v, status %d", pid, got, err, ended.ExitStatus())
	}
	s.restore(false)
}

// childThatEnds makes a child of this process with that pid, which ends at once and is not collected.
func childThatEnds(pid, status int) error {
	number := int32(pid) //nolint:gosec // a pid
	args := cloneArgs{exitSignal: uint64(unix.SIGCHLD), setTID: uint64(uintptr(unsafe.Pointer(&number))), setTIDSize: 1}
	got, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 {
		return errno
	}
	if got == 0 {
		for { // nothing of Go's works in the child
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(status), 0, 0)
		}
	}
	runtime.KeepAlive(&number)
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// cloneArgs is struct clone_args of linux/sched.h.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal     uint64
	stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}
