package pageserver

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Whatever connects before the sender and is none does not keep the sender from its turn.
func TestOthersAreTurnedAway(t *testing.T) {
	g := receiving(t, rigOptions{})
	silent := g.connect(longLayout)
	web := g.connect(longLayout)
	if _, err := web.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")[:24]); err != nil {
		t.Fatal(err)
	}
	if n, err := web.Read(make([]byte, 1)); err == nil {
		t.Errorf("it answers %d bytes to a browser", n)
	}
	lazy := g.connect(longLayout)
	lazy.say(t, cmdGet, 0, 1, 1<<20, 5)
	left := g.connect(longLayout)
	left.Close()
	first := g.connect(shortLayout)
	first.open(t, 5<<8|1)
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("the connection that said nothing is still open")
	}
	first.pages(t, 5<<8|1, page, bytes.Repeat([]byte{1}, page))
	if status := first.close(t); status != 0 {
		t.Errorf("the server says %d", status)
	}
	sameMemory(t, "process 5", memoryOf(t, g.opened(), 5), map[uint64][]byte{page: bytes.Repeat([]byte{1}, page)})
	if turned := g.turnedAway(); len(turned) != 4 {
		t.Errorf("turned away: %v", turned)
	}
}

// A socket that others hold open is not waited for at the end (--ps-socket).
func TestForcedClose(t *testing.T) {
	g := receiving(t, rigOptions{})
	s := g.connect(longLayout)
	s.open(t, 5<<8|1)
	s.pages(t, 5<<8|1, page, make([]byte, page))
	s.say(t, cmdForceClose, 0, 0, 0, 0)
	if status := s.hear(t, 4); !bytes.Equal(status, make([]byte, 4)) {
		t.Errorf("the server says %v", status)
	}
	begun := time.Now()
	if err := g.wait(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took >= hangUpWithin {
		t.Errorf("it waited for %v", took)
	}
}

func TestSilenceEndsTheSession(t *testing.T) {
	g := receiving(t, rigOptions{idle: 50 * time.Millisecond})
	s := g.connect(longLayout)
	s.open(t, 5<<8|1)
	s.say(t, cmdRun, flagPresent, 1, page, 5<<8|1)
	if err := g.refused(); !strings.Contains(err.Error(), "0 of 4096 bytes in 50ms") {
		t.Errorf("it says: %v", err)
	}
}

func TestInterruption(t *testing.T) {
	why := errors.New("somebody pressed a key")
	t.Run("waiting", func(t *testing.T) {
		g := receiving(t, rigOptions{})
		g.cancel(why)
		if err := g.refused(); !errors.Is(err, why) {
			t.Errorf("it says: %v", err)
		}
	})
	for _, kind := range []uint64{1, 2} {
		t.Run(fmt.Sprint("receiving ", kind), func(t *testing.T) {
			g := receiving(t, rigOptions{})
			s := g.connect(longLayout)
			s.open(t, 5<<8|kind)
			s.say(t, cmdRun, flagPresent, 3, page, 5<<8|kind)
			if _, err := s.Write(make([]byte, 2*page)); err != nil {
				t.Fatal(err)
			}
			g.cancel(why)
			if err := g.refused(); !errors.Is(err, why) {
				t.Errorf("it says: %v", err)
			}
		})
	}
}

// A checkpoint that can't be written makes the sender's dump fail: it is told, or loses the connection.
func TestSenderHearsOfFailure(t *testing.T) {
	broken := errors.New("no space left")
	for _, operation := range []string{"write", "finish", "commit"} {
		for _, kind := range []uint64{1, 2} {
			t.Run(fmt.Sprint(operation, kind), func(t *testing.T) {
				begun := false
				g := receiving(t, rigOptions{codec: "none", fail: func(op, _ string) error {
					if op == operation && begun {
						return broken
					}
					return nil
				}})
				s := g.connect(longLayout)
				s.open(t, 5<<8|kind)
				begun = true
				data := bytes.Repeat([]byte{1, 2, 3, 4}, 200*page/4)
				_, _ = s.Write(head{cmdRun, flagPresent, 200, page, 5<<8 | kind}.encode(longLayout))
				if _, err := s.Write(data); err == nil {
					_, _ = s.Write(head{cmd: cmdClose}.encode(longLayout))
					if b := make([]byte, 4); readAll(s, b) && bytes.Equal(b, make([]byte, 4)) {
						t.Error("the sender hears that all is well")
					}
				}
				s.Close()
				if err := g.refused(); !errors.Is(err, broken) {
					t.Errorf("it says: %v", err)
				}
			})
		}
	}
}

func readAll(s *sender, b []byte) bool {
	for n := 0; n < len(b); {
		k, err := s.Read(b[n:])
		if n += k; err != nil {
			return false
		}
	}
	return true
}

// A sender that is gone before it hears the answer has failed, but the checkpoint is there.
func TestSenderGoneAtTheEnd(t *testing.T) {
	g := receiving(t, rigOptions{})
	s := g.connect(longLayout)
	s.open(t, 5<<8|1)
	s.pages(t, 5<<8|1, page, make([]byte, page))
	s.say(t, cmdClose, 0, 0, 0, 0)
	s.Close()
	c := g.opened()
	if g.got.Unheard == nil {
		t.Error("nobody says that the sender did not hear")
	}
	if got := slices.Collect(maps.Keys(memoryOf(t, c, 5))); !slices.Equal(got, []uint64{page}) {
		t.Errorf("its pages are %v", got)
	}
}
