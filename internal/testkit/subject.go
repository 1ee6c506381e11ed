package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/require"
)

// Subject is the program of test/programs/src, which holds one kind of state
// for each feature that it is started with.
type Subject struct {
	// Dir is its folder.
	Dir string

	pid  int
	seq  int   // of its last answer
	read int64 // how much of its answers was read
}

// Answer is one line of a subject.
type Answer struct {
	OK   bool
	Seq  int              // counts in the program's memory
	Text string           // what is wrong
	Has  map[string]int64 // figures, such as gap_us; each feature's help says which
}

// answerWithin is how long a check may take. Gigabytes take a second or two.
const answerWithin = 60 * time.Second

// StartSubject starts subject with features such as "mem:mib=64,rate=20". It
// skips the test when the program says that the machine lacks something.
// In an argument, DIR stands for the program's folder.
func StartSubject(t T, features ...string) *Subject {
	t.Helper()
	path := SubjectPath(t)
	s := &Subject{Dir: folder(t)}
	args := []string{s.Dir}
	for _, feature := range features {
		args = append(args, strings.ReplaceAll(feature, "DIR", s.Dir))
	}
	s.pid = start(t, command{path: path, args: args, dir: s.Dir})
	s.waitReady(t)
	Watch(s.pid) // its children too
	return s
}

func (s *Subject) waitReady(t T) {
	t.Helper()
	var status []byte
	until(t, "subject is ready", func() (err error) {
		status, err = os.ReadFile(filepath.Join(s.Dir, "status"))
		if err != nil {
			if dead := alive(s.pid); dead != nil {
				t.Fatalf("subject is not ready: %v", dead)
			}
		}
		return err
	})
	word, rest, _ := strings.Cut(strings.TrimSpace(string(status)), " ")
	switch word {
	case "ready":
	case "missing":
		feature, what, _ := strings.Cut(rest, ": ")
		require.Missing(t, "subject-"+feature, "%s", what)
	default:
		t.Fatalf("subject: %s", status)
	}
}

// PID implements [Program].
func (s *Subject) PID() int { return s.pid }

// Check lets the program compare all its state, and returns what it says.
func (s *Subject) Check(t T) Answer { t.Helper(); return s.ask(t, unix.SIGUSR1) }

// Note returns the program's figures without a check. Those that measure a
// longest time begin anew with each answer.
func (s *Subject) Note(t T) Answer { t.Helper(); return s.ask(t, unix.SIGUSR2) }

func (s *Subject) ask(t T, signal unix.Signal) Answer {
	t.Helper()
	if err := unix.Kill(s.pid, signal); err != nil {
		t.Fatalf("subject %d: %v; %v", s.pid, err, alive(s.pid))
	}
	var a Answer
	wait(t, answerWithin, "subject's answer", func() (err error) {
		a, err = s.nextAnswer()
		if errors.Is(err, os.ErrNotExist) {
			if dead := alive(s.pid); dead != nil {
				t.Fatalf("subject does not answer: %v", dead)
			}
		}
		return err
	})
	if a.Seq != s.seq+1 {
		t.Errorf("subject's answer has number %d, should have %d: its memory is from another time", a.Seq, s.seq+1)
	}
	s.seq = a.Seq
	return a
}

// nextAnswer returns the next whole line of the answers. The file is not part
// of a checkpoint: it only grows.
func (s *Subject) nextAnswer() (Answer, error) {
	text, err := os.ReadFile(filepath.Join(s.Dir, "answers"))
	if errors.Is(err, os.ErrNotExist) {
		text, err = nil, nil
	}
	if err != nil {
		return Answer{}, err
	}
	line, _, whole := bytes.Cut(text[min(s.read, int64(len(text))):], []byte("\n"))
	if !whole {
		return Answer{}, fmt.Errorf("no answer: %w", os.ErrNotExist)
	}
	s.read += int64(len(line)) + 1
	return parseAnswer(string(line))
}

func parseAnswer(line string) (Answer, error) {
	word, rest, _ := strings.Cut(line, " ")
	number, rest, _ := strings.Cut(rest, " ")
	seq, err := strconv.Atoi(number)
	if err != nil || word != "ok" && word != "note" && word != "bad" {
		return Answer{}, fmt.Errorf("subject answers %q", line)
	}
	a := Answer{OK: word != "bad", Seq: seq, Has: map[string]int64{}}
	if !a.OK {
		a.Text = rest
		return a, nil
	}
	for _, pair := range strings.Fields(rest) {
		key, value, _ := strings.Cut(pair, "=")
		if a.Has[key], err = strconv.ParseInt(value, 10, 64); err != nil {
			return Answer{}, fmt.Errorf("subject answers %q", line)
		}
	}
	return a, nil
}

// Exec lets the program execute itself anew: the same process, with other
// memory. It must have no children.
func (s *Subject) Exec(t T) {
	t.Helper()
	if err := os.Remove(filepath.Join(s.Dir, "status")); err != nil {
		t.Fatalf("%v", err)
	}
	if err := unix.Kill(s.pid, unix.SIGPWR); err != nil {
		t.Fatalf("subject %d: %v; %v", s.pid, err, alive(s.pid))
	}
	s.waitReady(t)
	s.seq = 0
}

// Work implements [Program]: the program works all the time, so it waits until
// its counters have moved.
func (s *Subject) Work(t T) {
	t.Helper()
	before := s.Note(t)
	wait(t, answerWithin, "subject works", func() error {
		now := s.Note(t)
		for _, counter := range []string{"written", "churned", "births"} {
			if old, counts := before.Has[counter]; counts && now.Has[counter] <= old {
				return fmt.Errorf("%s stays at %d", counter, old)
			}
		}
		return nil
	})
}

// Prove implements [Program].
func (s *Subject) Prove(t T) {
	t.Helper()
	if a := s.Check(t); !a.OK {
		t.Errorf("subject: %s", a.Text)
	}
}

// Snapshot implements [Program].
func (s *Subject) Snapshot() func() {
	seq := s.seq
	return func() { s.seq = seq }
}

var _ Program = (*Subject)(nil)
