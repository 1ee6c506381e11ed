package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis"
	"stasis/internal/require"
)

func launch(t *testing.T) (*Client, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-", 20)) // longer than a socket's path may be
	c, err := Launch(dir, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Signal(context.Background(), syscall.SIGKILL, true)
		if now, err := c.Status(context.Background()); err == nil {
			_, _ = c.Wait(t.Context(), now.Run)
			if _, err := c.Wait(context.Background(), now.Run); err == nil {
				_ = c.Quit(context.Background())
			}
		}
	})
	return c, dir
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func sh(script string, terminal bool) Command {
	return Command{Argv: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/", Terminal: terminal}
}

func logOf(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, logName))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRunToItsEnd(t *testing.T) {
	for _, terminal := range []bool{true, false} {
		t.Run(fmt.Sprint("terminal=", terminal), func(t *testing.T) {
			c, dir := launch(t)
			ctx := within(t)
			now, err := c.Start(ctx, sh("test -t 0 && echo on a terminal; echo out; echo err >&2; exit 7", terminal))
			if err != nil {
				t.Fatal(err)
			}
			if now, err = c.Wait(ctx, now.Run); err != nil || now.Running || now.Exit == nil || now.Exit.Code != 7 {
				t.Fatalf("ended as %+v %+v, %v", now, now.Exit, err)
			}
			want := "out\nerr\n"
			if terminal {
				want = "on a terminal\r\nout\r\nerr\r\n"
			}
			if got := logOf(t, dir); got != want {
				t.Fatalf("the log has %q, want %q", got, want)
			}
			if last, err := LastStatus(dir); err != nil || last.Exit == nil || last.Exit.Code != 7 {
				t.Fatalf("left behind: %+v, %v", last, err)
			}
			// Another run in the same shim, and an end by a signal, with a child that stays behind.
			now, err = c.Start(ctx, sh("sleep 1000 & echo $!; kill -KILL $$", terminal))
			if err != nil || now.Run != 2 {
				t.Fatalf("second start: %+v, %v", now, err)
			}
			if now, err = c.Wait(ctx, 2); err != nil || now.Exit == nil || now.Exit.Signal != "SIGKILL" {
				t.Fatalf("ended as %+v, %v", now.Exit, err)
			}
			var child int
			if _, err := fmt.Sscan(strings.TrimPrefix(logOf(t, dir), want), &child); err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(child, 0); !errors.Is(err, unix.ESRCH) {
				t.Fatalf("child %d of the ended job: %v, want it gone", child, err)
			}
		})
	}
}

// When the machine goes down every process gets SIGTERM, the shim too. A job that ends by it, however cleanly, has not come to its end.
func TestAnEndWithTheMachineIsNoEnd(t *testing.T) {
	c, _ := launch(t)
	ctx := within(t)
	now, err := c.Start(ctx, sh("exit 0", false))
	if err != nil {
		t.Fatal(err)
	}
	if now, err = c.Wait(ctx, now.Run); err != nil || now.Exit == nil || now.Exit.Lost || !now.Exit.Clean() {
		t.Fatalf("by itself it ended as %+v, %v", now.Exit, err)
	}
	if err := unix.Kill(now.Shim, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for { // it takes its signal when it comes to it
		if now, err = c.Start(ctx, sh("exit 0", false)); err != nil {
			t.Fatal(err)
		}
		if now, err = c.Wait(ctx, now.Run); err != nil || now.Exit == nil {
			t.Fatalf("ended as %+v, %v", now.Exit, err)
		}
		if now.Exit.Lost {
			break
		}
	}
	if now.Exit.Clean() {
		t.Errorf("it counts as come to its end: %+v", now.Exit)
	}
}

func TestBadStartsAreSaid(t *testing.T) {
	c, _ := launch(t)
	ctx := within(t)
	for name, command := range map[string]Command{
		"no such command in": {Argv: []string{"no-such-thing"}, Dir: "/"},
		"start /etc/passwd":  {Argv: []string{"/etc/passwd"}, Dir: "/"},
		"no command":         {},
		"chdir":              {Argv: []string{"/bin/true"}, Dir: "/no/such/folder"},
	} {
		if _, err := c.Start(ctx, command); err == nil || !strings.Contains(err.Error(), name) && name != "chdir" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.status(ctx, request{Op: "dance"}); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("an unknown request: %v", err)
	}
	if err := c.Signal(ctx, syscall.SIGTERM, false); err == nil {
		t.Error("a signal to nobody succeeded")
	}
	if err := c.Quit(ctx); err != nil {
		t.Error(err)
	}
	for range 200 {
		if _, err := c.Status(ctx); errors.Is(err, ErrGone) {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Error("the shim did not quit")
}

// A shim holds the job's terminal: while the job runs it does not go, whoever says so. Two that say so at once are one too many, and no more.
func TestQuit(t *testing.T) {
	c, _ := launch(t)
	ctx := within(t)
	now, err := c.Start(ctx, sh("sleep 1000", true))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Quit(ctx); err == nil || !strings.Contains(err.Error(), "the job runs") {
		t.Errorf("while the job runs: %v", err)
	}
	after, err := c.Status(ctx)
	if err != nil || !after.Running || after.Busy {
		t.Fatalf("afterwards: %+v, %v", after, err)
	}
	if err := c.Signal(ctx, syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(ctx, now.Run); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() { _ = c.Quit(ctx) }) // the later one may meet nobody
	}
	both.Wait()
}

// until reads lines of a terminal until one has the text.
func until(t *testing.T, in *bufio.Reader, text string) string {
	t.Helper()
	line := make(chan string)
	go func() {
		for {
			got, err := in.ReadString('\n')
			if err != nil {
				line <- "error: " + err.Error()
				return
			}
			if strings.Contains(got, text) {
				line <- got
				return
			}
		}
	}()
	select {
	case got := <-line:
		if !strings.Contains(got, text) {
			t.Fatalf("waiting for %q: %s", text, got)
		}
		return strings.TrimSpace(got)
	case <-time.After(20 * time.Second):
		t.Fatalf("%q was not printed", text)
		return ""
	}
}

// A job with a terminal counts, is dumped, killed and restored: it goes on from where the checkpoint was, the log goes on, the one who is attached
// stays attached and can type, and the terminal has the size of that one's window.
func TestTerminalWorksAgainAfterRestore(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	c, dir := launch(t)
	ctx := within(t)
	script := `i=0; while :; do i=$((i+1)); echo "n $i"; sleep 0.05; if read -t 0; then read line; echo "got $line $(stty size)"; fi; done`
	now, err := c.Start(ctx, Command{Argv: []string{"bash", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/", Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := c.Attach(ctx, 33, 99)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	out := bufio.NewReader(terminal)
	fmt.Fprintf(terminal, "hello\n")
	until(t, out, "got hello 33 99")
	checkpoint := filepath.Join(t.TempDir(), "cp")
	_, err = stasis.Dump(ctx, stasis.DumpOptions{PID: now.PID, Dir: checkpoint, After: stasis.AfterRun, CRIU: stasis.CRIUOptions{External: []string{now.Console}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(ctx, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if now, err = c.Wait(ctx, now.Run); err != nil || now.Exit == nil || now.Exit.Signal != "SIGKILL" {
		t.Fatalf("ended as %+v, %v", now.Exit, err)
	}
	until(t, out, "ended by SIGKILL")
	now, _, err = c.Restore(ctx, Restore{Dir: checkpoint, Terminal: true, ConsoleFlags: unix.O_NONBLOCK}) // as Node.js would have made it
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/1", now.PID))
	if err != nil || !strings.Contains(string(info), "flags:\t0104002") {
		t.Fatalf("the restored terminal has %s, %v", info, err)
	}
	until(t, out, "restored from cp")
	if err := terminal.Resize(40, 120); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(terminal, "again\n")
	until(t, out, "got again 40 120")
	fmt.Fprint(terminal, "\x03") // Ctrl-C reaches it: it is the job's controlling terminal
	if now, err = c.Wait(ctx, now.Run); err != nil || now.Exit == nil || now.Exit.Signal != "SIGINT" {
		t.Fatalf("ended as %+v, %v", now.Exit, err)
	}
	// The log has what both runs have printed; a number comes again after the restore, as it was printed after the checkpoint.
	var numbers []int
	for line := range strings.Lines(logOf(t, dir)) {
		var n int
		if _, err := fmt.Sscanf(line, "n %d", &n); err == nil {
			numbers = append(numbers, n)
		}
	}
	back := 0
	for i := 1; i < len(numbers); i++ {
		if numbers[i] != numbers[i-1]+1 {
			if back++; numbers[i] > numbers[i-1] || numbers[i] < 2 {
				t.Fatalf("after %d came %d", numbers[i-1], numbers[i])
			}
		}
	}
	if len(numbers) < 3 || numbers[0] != 1 || back > 1 {
		t.Fatalf("the job counted %v", numbers)
	}
}

// A job without a terminal goes on printing to the log.
func TestPipeWorksAgainAfterRestore(t *testing.T) {
	require.Root(t)
	require.CRIU(t)
	c, dir := launch(t)
	ctx := within(t)
	now, err := c.Start(ctx, sh("while :; do echo tick; sleep 0.05; done", false))
	if err != nil {
		t.Fatal(err)
	}
	waitLog(t, dir, "tick", 1)
	checkpoint := filepath.Join(t.TempDir(), "cp")
	_, err = stasis.Dump(ctx, stasis.DumpOptions{PID: now.PID, Dir: checkpoint, After: stasis.AfterKill, CRIU: stasis.CRIUOptions{External: []string{now.Console}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Wait(ctx, now.Run); err != nil {
		t.Fatal(err)
	}
	before := strings.Count(logOf(t, dir), "tick")
	if _, _, err = c.Restore(ctx, Restore{Dir: checkpoint}); err != nil {
		t.Fatal(err)
	}
	waitLog(t, dir, "tick", before+3)
}

func waitLog(t *testing.T, dir, text string, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); strings.Count(logOf(t, dir), text) < n; <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q was not printed %d times:\n%s", text, n, logOf(t, dir))
		}
	}
}

// A viewer that never reads neither stops the job nor others.
func TestSlowViewerIsLetGo(t *testing.T) {
	c, dir := launch(t)
	ctx := within(t)
	slow, err := c.Attach(ctx, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	now, err := c.Start(ctx, sh("seq 3000000; echo done", false))
	if err != nil {
		t.Fatal(err)
	}
	if now, err = c.Wait(ctx, now.Run); err != nil || now.Exit == nil || now.Exit.Code != 0 {
		t.Fatalf("ended as %+v, %v", now.Exit, err)
	}
	if log := logOf(t, dir); !strings.HasSuffix(log, "\ndone\n") {
		t.Fatalf("the log ends with %q", log[max(0, len(log)-40):])
	}
	if n, err := io.Copy(io.Discard, slow); err != nil || n > 16<<20 {
		t.Fatalf("the slow viewer got %d bytes, %v", n, err)
	}
}
