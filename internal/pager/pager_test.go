//go:build linux && (amd64 || arm64)

package pager

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
)

func TestEagerFill(t *testing.T) {
	for _, perBlock := range []int{1, 5, 64} {
		t.Run(fmt.Sprint(perBlock), func(t *testing.T) {
			var reports []int64
			src := newPattern(1000, perBlock)
			h := open(t, src, src.pages, Options{OnProgress: func(done, total int64) { reports = append(reports, done, total) }})
			h.ask("v 0 16 0") // a restore touches memory before it is done
			h.ask("s")
			h.fill()
			h.ask("v 0 1000 0")
			h.ask("d 0 1000") // nobody waits for events any more
			h.ask("v 0 1000 %d", zero)
			n := len(reports)
			if n < 2 || reports[n-2] != reports[n-1] {
				t.Errorf("the last of %d reports says %v", n/2, reports[max(0, n-2):])
			}
			if got := h.pager.Tasks(); len(got) != 1 || got[0] != tenantPID {
				t.Errorf("Tasks() = %v", got)
			}
		})
	}
}

func TestLazyFillOfARunningProgram(t *testing.T) {
	src := newPattern(4000, 64)
	src.before = slow
	h := open(t, src, src.pages, Options{Lazy: true, Workers: 2})
	h.ask("s")
	filled := h.startFill()
	for a := 0; a < 4000; a += 500 {
		h.ask("t %d 500 %d", a, a)
	}
	h.ask("j")
	h.wantFilled(filled)
	h.ask("v 0 4000 0")
}

// slow stands for a checkpoint that comes over a network.
func slow(int) error {
	<-time.After(rand.N(2 * time.Millisecond))
	return nil
}

// gate lets reads of blocks wait for the test.
type gate struct {
	reached, open chan struct{}
	once          sync.Once
}

func (g *gate) wait(int) error {
	g.once.Do(func() { close(g.reached) })
	<-g.open
	return nil
}

// While the only block is on its way, its memory changes. What comes must not
// go where it no longer belongs.
func TestChangesWhileABlockIsOnItsWay(t *testing.T) {
	for name, steps := range map[string][]string{
		"nothing":               {"", "v 0 64 0"},
		"dropped":               {"d 8 16", "v 0 8 0", "v 8 16 -1", "v 24 40 24"},
		"dropped and written":   {"d 8 16", "W 8 16", "", "o 8 16", "v 0 8 0"},
		"unmapped":              {"u 8 16", "v 0 8 0", "v 24 40 24"},
		"moved away":            {"m 8 16 200", "v 0 8 0", "v 200 16 8", "v 24 40 24"},
		"moved twice":           {"m 8 16 200", "m 204 8 300", "v 200 4 8", "v 300 8 12", "v 212 4 20"},
		"moved onto other":      {"m 0 16 32", "v 32 16 0", "v 16 16 16", "v 48 16 48"},
		"swapped":               {"m 0 16 200", "m 16 16 0", "m 200 16 16", "v 0 16 16", "v 16 16 0"},
		"moved and dropped":     {"m 8 16 200", "d 200 4", "v 200 4 -1", "v 204 12 12"},
		"split by protection":   {"p 8 16", "v 0 64 0"},
		"forked":                {"F 0 64 0", "", "w", "v 0 64 0"},
		"moved, then forked":    {"m 8 16 200", "F 200 16 8", "", "w", "v 200 16 8"},
		"dropped after a fork":  {"F 0 64 0", "d 0 64", "", "w", "v 0 64 -1"},
		"wiped in a child":      {"k 8 16", "F 8 16 -1", "", "w", "v 0 64 0"},
		"kept after all":        {"k 8 16", "K 8 16", "F 0 64 0", "", "w", "v 0 64 0"},
		"a child that is gone":  {"e", "v 0 64 0"},
		"a grandchild's parent": {"F 16 8 16", "F 0 8 0", "", "w", "v 0 64 0"},
	} {
		t.Run(name, func(t *testing.T) {
			g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
			src := newPattern(64, 64)
			src.before = g.wait
			h := open(t, src, src.pages, Options{Lazy: true})
			h.ask("s")
			filled := h.startFill()
			<-g.reached
			closed := false
			for _, step := range steps {
				// An empty step opens the gate; else the first question does.
				if !closed && (step == "" || step[0] == 'v') {
					close(g.open)
					closed = true
				}
				if step != "" {
					h.ask("%s", step)
				}
			}
			h.wantFilled(filled)
		})
	}
}

// A thread asleep on a page that is dropped is not left asleep.
func TestSleepersOfADroppedPageAreWoken(t *testing.T) {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	src := newPattern(64, 64)
	src.before = g.wait
	h := open(t, src, src.pages, Options{Lazy: true})
	h.ask("s")
	filled := h.startFill()
	<-g.reached
	h.ask("t 8 1 %d", zero)
	for end := time.Now().Add(deadline); !h.parked(0); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("no fault has come")
		}
	}
	h.ask("d 8 1")
	h.ask("j") // while the block is still on its way
	close(g.open)
	h.wantFilled(filled)
}

// parked reports whether a fault waits for a block that is busy.
func (h *house) parked(block int) bool {
	h.pager.mu.Lock()
	defer h.pager.mu.Unlock()
	return len(h.pager.blocks.parked[block]) > 0
}

// The same changes before anything is read, and filled only by faults.
func TestChangesThenFaults(t *testing.T) {
	src := newPattern(64, 16)
	h := open(t, src, src.pages, Options{Lazy: true})
	h.ask("s")
	h.ask("m 0 16 200")
	h.ask("d 16 8")
	h.ask("u 40 4")
	h.ask("F 200 16 0")
	h.ask("w")
	h.ask("v 200 16 0")
	h.ask("v 16 8 -1")
	h.ask("v 24 16 24")
	h.ask("v 44 20 44")
	h.fill()
}

// Threads that map, move, drop, write and fork as they like find what they must
// find, at every moment of the fill.
func TestStress(t *testing.T) {
	ops := 300
	if testing.Short() {
		ops = 60
	}
	for threads := range 6 {
		seed := rand.Uint32()
		t.Run(fmt.Sprintf("%d threads, seed %d", 1+threads, seed), func(t *testing.T) {
			src := newPattern(6000, 16)
			src.before = slow
			h := open(t, src, src.pages, Options{Lazy: true, Workers: 1 + int(seed%4)})
			h.ask("s")
			h.tell("x %d %d %d", 1+threads, ops, seed)
			filled := h.startFill()
			h.expect("ok")
			h.wantFilled(filled)
		})
	}
}

// A mapping that grows while the fill comes to its end stays one mapping: mremap of two fails. A guard holds copies of the
// descriptors until it is told that all memory is there.
func TestAMappingThatGrowsStaysOne(t *testing.T) {
	for range 20 {
		var copies []int
		drop := func() {
			for _, fd := range copies {
				unix.Close(fd)
			}
			copies = nil
		}
		src := newPattern(64, 16)
		h := open(t, src, src.pages, Options{Lazy: true, OnComplete: drop, OnDescriptor: func(fd int) error {
			held, err := unix.Dup(fd)
			copies = append(copies, held)
			return err
		}})
		h.ask("s")
		h.ask("g 0 64")
		h.fill()
		if len(copies) > 0 {
			t.Error("nobody was told that all memory is there")
		}
		for range 3 {
			h.ask("v 0 64 0")
		}
		drop()
		h.ask("G")
		h.kill()
	}
}

// When it is told that all memory is there, the pager serves still: whoever holds copies of the descriptors drops them first.
func TestCompleteMemoryIsServedUntilTheLastCopyIsDropped(t *testing.T) {
	told := make(chan struct{})
	dropped := make(chan struct{})
	src := newPattern(64, 16)
	h := open(t, src, src.pages, Options{Lazy: true, OnComplete: func() { close(told); <-dropped }})
	h.ask("s")
	filled := h.startFill()
	<-told
	h.ask("v 7 1 -1")
	h.ask("u 60 2")
	h.ask("F 0 60 0")
	h.ask("w")
	close(dropped)
	h.wantFilled(filled)
	h.ask("v 0 60 0")
}

func TestManyChildrenThatEndAreForgotten(t *testing.T) {
	src := newPattern(64, 16)
	h := open(t, src, src.pages, Options{Lazy: true})
	h.ask("s")
	for range 300 {
		h.ask("e")
	}
	h.pager.mu.Lock()
	n := len(h.pager.tasks)
	h.pager.mu.Unlock()
	if n > 200 {
		t.Errorf("%d tasks are kept for one process", n)
	}
	h.fill()
	h.ask("v 0 64 0")
}

// A page of a damaged block never reaches the process; all others do.
func TestADamagedBlockIsNeverPutInPlace(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprint("lazy ", lazy), func(t *testing.T) {
			damage := &image.DamageError{Checkpoint: "c", Shard: "img-0", Why: "test"}
			src := newPattern(64, 16)
			src.before = func(block int) error {
				if block == 1 {
					return damage
				}
				return nil
			}
			h := open(t, src, src.pages, Options{Lazy: lazy})
			h.ask("v 0 16 0")
			h.ask("s")
			h.ask("t 16 16 16")
			h.tell("j")
			if err := receive(t, h.errors); !errors.Is(err, damage) {
				t.Fatalf("OnError was told %v", err)
			}
			if err := <-h.startFill(); !errors.Is(err, damage) {
				t.Fatalf("Fill = %v", err)
			}
			if err := h.pager.Err(); !errors.Is(err, damage) {
				t.Fatalf("Err() = %v", err)
			}
			select {
			case answer := <-h.answers:
				t.Fatalf("a thread went on without its memory: %s", answer)
			default:
			}
		})
	}
}

func receive(t *testing.T, c chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(deadline):
		t.Fatalf("nothing within %v", deadline)
		return nil
	}
}

// Memory that CRIU has not armed is an error when the tree is stopped: it would be zeros.
func TestMemoryThatIsNotArmedIsAnError(t *testing.T) {
	src := newPattern(64, 16)
	h := open(t, src, 40, Options{Workers: 1})
	h.ask("s")
	err := <-h.startFill()
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "process 4711 at 0x1000028000") {
		t.Fatalf("Fill = %v", err)
	}
	receive(t, h.errors)
}

func TestTheEndOfAProcessIsNoError(t *testing.T) {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	src := newPattern(640, 16)
	src.before = g.wait
	h := open(t, src, src.pages, Options{Lazy: true})
	h.ask("s")
	filled := h.startFill()
	<-g.reached
	h.kill()
	close(g.open)
	h.wantFilled(filled)
}

func TestFillEndsWithItsContext(t *testing.T) {
	src := newPattern(64, 16)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user has had enough")
	cancel(why)
	p, err := Listen(t.TempDir(), src, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Fill(ctx); !errors.Is(err, why) {
		t.Fatalf("Fill before anything came = %v", err)
	}
	h := open(t, src, src.pages, Options{})
	<-h.pager.arrived
	if err := h.pager.Fill(ctx); !errors.Is(err, why) {
		t.Fatalf("Fill = %v", err)
	}
	h.fill()
	h.ask("v 0 64 0")
}

// CRIU notifies of post-restore, the moment for an eager fill, before its last
// word on the socket, and takes a closed socket for an error.
func TestEagerFillBeforeCRIUsLastWord(t *testing.T) {
	src := newPattern(64, 16)
	h := open(t, src, src.pages, Options{})
	h.fill()
	h.ask("s")
	h.ask("v 0 64 0")
}

func TestAProcessThatCRIUDoesNotHandOver(t *testing.T) {
	src := two{newPattern(64, 16)}
	h := open(t, src, src.pages, Options{})
	h.ask("s")
	if err := <-h.startFill(); err == nil || !strings.Contains(err.Error(), "processes [4712]") {
		t.Fatalf("Fill = %v", err)
	}
}

// two is a pattern that knows of a second process.
type two struct{ *pattern }

func (two) PIDs() []int { return []int{tenantPID, tenantPID + 1} }

func (s two) Ranges(int) []image.Range { return s.pattern.Ranges(tenantPID) }

func TestCloseLetsNobodyWait(t *testing.T) {
	p, err := Listen(t.TempDir(), newPattern(64, 16), Options{})
	if err != nil {
		t.Fatal(err)
	}
	filled := make(chan error, 1)
	go func() { filled <- p.Fill(context.Background()) }()
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := receive(t, filled); err == nil {
		t.Fatal("Fill succeeded")
	}
}
