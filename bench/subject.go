package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stasis/bench/rig"
	"stasis/internal/proc"
	"stasis/test/programs"
)

// subject is the program that the tests dump as well, with its feature mem: it
// writes to random pages, measures how long it stood still, and can tell
// whether its memory is right.
type subject struct {
	pid int
	dir string
}

// buildSubject compiles the program into a folder.
func buildSubject(ctx context.Context, dir string) (path string, err error) {
	if err := os.CopyFS(filepath.Join(dir, "source"), programs.Subject); err != nil {
		return "", err
	}
	sources, err := fs.Glob(programs.Subject, "src/*.c")
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "subject")
	cmd := exec.CommandContext(ctx, "gcc", append([]string{"-O2", "-pthread", "-o", path}, sources...)...)
	cmd.Dir = filepath.Join(dir, "source")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the program to dump: %w\n%s", err, out)
	}
	return path, nil
}

// startSubject starts the program in a session of its own and waits until all
// of its memory is there. Half of its memory's content is compressible as real
// memory is. More are further options of the feature mem.
func startSubject(ctx context.Context, program, dir string, bytes int64, megabytesPerSecond int, more ...string) (*subject, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range []string{"status", "answers"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	cmd := exec.Command(program, dir, strings.Join(append([]string{fmt.Sprintf("mem:mib=%d,rate=%d,fill=text,gaps=list", bytes>>20, megabytesPerSecond)}, more...), ","))
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &subject{pid: cmd.Process.Pid, dir: dir}
	if err := s.waitReady(ctx); err != nil {
		return nil, errors.Join(err, rig.End(s.pid))
	}
	return s, nil
}

func (s *subject) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return rig.Wait(ctx, "the program to be ready", func() (bool, error) {
		text, err := os.ReadFile(filepath.Join(s.dir, "status"))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err == nil && !bytes.HasPrefix(text, []byte("ready ")) {
			err = fmt.Errorf("the program says: %s", bytes.TrimSpace(text))
		}
		return err == nil, err
	})
}

// answer is what the program says about itself.
type answer struct {
	gap     time.Duration // longest standstill since the last answer
	written int64         // pages, since it was started; a page counts each time
	gaps    []span        // the longest standstills since then, of 0.5 ms and more
	resumed time.Time     // end of the longest jump of the wall clock since then
}

// figures asks for the figures alone; check makes the program check all of its
// memory as well.
func (s *subject) figures(ctx context.Context) (answer, error) { return s.ask(ctx, unix.SIGUSR2) }
func (s *subject) check(ctx context.Context) (answer, error)   { return s.ask(ctx, unix.SIGUSR1) }

// forget makes the longest standstill start anew.
func (s *subject) forget(ctx context.Context) error {
	_, err := s.figures(ctx)
	return err
}

func (s *subject) ask(ctx context.Context, signal unix.Signal) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	path := filepath.Join(s.dir, "answers")
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return answer{}, err
	}
	if err := unix.Kill(s.pid, signal); err != nil {
		return answer{}, fmt.Errorf("signal process %d: %w", s.pid, err)
	}
	var line string
	err = rig.Wait(ctx, "the program's answer", func() (bool, error) {
		if task, err := proc.ReadTask(s.pid); err != nil || task.Zombie() {
			return false, fmt.Errorf("the program, process %d, has ended", s.pid)
		}
		now, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		line = strings.TrimSpace(string(now[min(len(before), len(now)):]))
		return line != "", err
	})
	if err != nil {
		return answer{}, err
	}
	return parseAnswer(line)
}

// parseAnswer reads "ok 3 gap_us=81 jump_end_us=17800021 …", or the reason why
// something is wrong.
func parseAnswer(line string) (answer, error) {
	if strings.HasPrefix(line, "bad ") {
		return answer{}, fmt.Errorf("the program found wrong memory: %s", line)
	}
	var a answer
	for field := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(field, "=")
		if key == "gaps" {
			a.gaps = parseGaps(value)
			continue
		}
		number, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			continue
		}
		switch key {
		case "gap_us":
			a.gap = time.Duration(number) * time.Microsecond
		case "written":
			a.written = number
		case "jump_end_us":
			a.resumed = time.UnixMicro(number)
		}
	}
	return a, nil
}

// parseGaps reads "81@17800021,40@17800090": the lengths and ends of standstills
// in microseconds.
func parseGaps(text string) []span {
	var gaps []span
	for gap := range strings.SplitSeq(text, ",") {
		var length, end int64
		if _, err := fmt.Sscanf(gap, "%d@%d", &length, &end); err == nil {
			gaps = append(gaps, span{time.UnixMicro(end - length), time.UnixMicro(end)})
		}
	}
	return gaps
}

func (s *subject) end() error { return rig.End(s.pid) }
