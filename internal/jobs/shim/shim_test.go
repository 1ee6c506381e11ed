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

func TestLogRotates(t *testing.T) {
	dir := t.TempDir()
	log, err := openLog(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for i := range 500 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		_, _ = log.Write([]byte(line))
	}
	var kept strings.Builder
	if err := CopyLog(t.Context(), dir, -1, false, nil, &kept); err != nil {
		t.Fatal(err)
	}
	if kept.Len() < 3000 || kept.Len() > 4000 || !strings.HasSuffix(all.String(), kept.String()) {
		t.Fatalf("%d bytes are kept, beginning with %.20q", kept.Len(), kept.String())
	}
	for _, n := range []int{0, 1, 2, 10, 150, 300} {
		var tail strings.Builder
		if err := CopyLog(t.Context(), dir, n, false, nil, &tail); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(tail.String(), "\n"); got != n || !strings.HasSuffix(all.String(), tail.String()) || n > 0 && !strings.HasPrefix(tail.String(), "line ") {
			t.Fatalf("the last %d lines are %d: %.30q", n, got, tail.String())
		}
	}
}

// As much of the output is kept as was asked for, by the program as it runs.
func TestLogIsAsLargeAsAsked(t *testing.T) {
	dir := t.TempDir()
	c, err := Launch(dir, 512<<10)
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	now, err := c.Start(ctx, sh("seq 100000", false))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(ctx, now.Run); err != nil {
		t.Fatal(err)
	}
	if err := c.Quit(ctx); err != nil {
		t.Fatal(err)
	}
	var kept strings.Builder
	if err := CopyLog(ctx, dir, -1, false, nil, &kept); err != nil {
		t.Fatal(err)
	}
	if kept.Len() > 512<<10 || kept.Len() < 256<<10 || !strings.HasSuffix(kept.String(), "\n100000\n") {
		t.Errorf("%d bytes are kept, which end with %q", kept.Len(), kept.String()[max(0, kept.Len()-20):])
	}
}

// A log that somebody has deleted is begun anew when it is full, and does not go on in a file that nobody sees, without end.
func TestLogIsDeleted(t *testing.T) {
	dir := t.TempDir()
	log, err := openLog(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 99) + "\n")
	for range 25 {
		_, _ = log.Write(line)
	}
	if err := os.Remove(filepath.Join(dir, logName)); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		_, _ = log.Write(line)
	}
	if now := logOf(t, dir); len(now) == 0 || len(now) > 1000 {
		t.Errorf("the log has %d bytes", len(now))
	}
	if info, err := os.Stat(logPath(dir, 2)); err != nil || info.Size() != 1000 {
		t.Errorf("the oldest is %v, %v", info, err)
	}
}

// A log whose files change their names while they are opened is read without a gap, and nothing twice.
func TestLogRotatesWhileItIsOpened(t *testing.T) {
	for after := range olderLogs + 1 {
		dir := t.TempDir()
		log, err := openLog(dir, 100)
		if err != nil {
			t.Fatal(err)
		}
		n, opened := 0, 0
		write := func() {
			_, _ = fmt.Fprintf(log, "line %094d\n", n)
			n++
		}
		for range 6 {
			write()
		}
		files, err := openAll(dir, func(path string) (*os.File, error) {
			file, err := os.Open(path)
			if opened++; opened == after+1 {
				write()
			}
			return file, err
		})
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, f := range files {
			text, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, string(text))
			f.Close()
		}
		if len(lines) != olderLogs+1 {
			t.Fatalf("%d files after the %d.: %q", len(lines), after, lines)
		}
		for i, line := range lines {
			if want := fmt.Sprintf("line %094d\n", n-len(lines)+i); line != want {
				t.Errorf("renamed after the %d.: file %d has %q, want %q", after, i, line, want)
			}
		}
	}
}

// Who follows a log gets every byte of it, over the changes of the file.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	log, err := openLog(dir, 2000)
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		for i := range 300 {
			line := fmt.Sprintf("line %d\n", i)
			want.WriteString(line)
			_, _ = log.Write([]byte(line))
			<-time.After(5 * time.Millisecond)
		}
	}()
	var got strings.Builder
	over := func() bool {
		select {
		case <-writing:
			return true
		default:
			return false
		}
	}
	if err := CopyLog(t.Context(), dir, -1, true, over, &got); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(want.String(), got.String()) || !strings.Contains(got.String(), "line 10\n") {
		t.Fatalf("followed %d of %d bytes:\n%.300s", got.Len(), want.Len(), got.String())
	}
}
