package shim

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

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
