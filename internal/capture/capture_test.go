package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"stasis/internal/image"
	"stasis/internal/proc"
	"stasis/internal/subject"
)

func TestMain(m *testing.M) {
	subject.Main(m, map[string]subject.Role{"numbered": numbered})
}

const pages = 1000

// numbered has pages that begin with their own address: the first half
// readable, the second half without any permission, a hole of one page at 100.
func numbered(say func(string, ...any), hear func() (string, bool)) {
	memory, err := unix.Mmap(-1, 0, pages*proc.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	base := uint64(uintptr(unsafe.Pointer(&memory[0])))
	for at := 0; at < len(memory); at += proc.PageSize {
		binary.LittleEndian.PutUint64(memory[at:], base+uint64(at))
	}
	unix.Mprotect(memory[len(memory)/2:], unix.PROT_NONE)
	unix.Syscall(unix.SYS_MUNMAP, uintptr(base+100*proc.PageSize), proc.PageSize, 0)
	say("%d", base)
	hear()
}

// collect is a sink that keeps pages by address and checks their content.
type collect struct {
	t     *testing.T
	mu    sync.Mutex
	pages map[uint64]bool
}

func (c *collect) put(b image.PageBlock) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b.Data) > image.MaxBlock {
		c.t.Errorf("a block of %d bytes", len(b.Data))
	}
	at := 0
	for _, e := range b.Extents {
		for i := range uint64(e.Pages) {
			addr := e.Addr + i*proc.PageSize
			if got := binary.LittleEndian.Uint64(b.Data[at:]); got != addr {
				c.t.Errorf("page %#x has the content of %#x", addr, got)
			}
			c.pages[addr] = true
			at += proc.PageSize
		}
	}
	return nil
}

func TestCopyReadsAllThereIs(t *testing.T) {
	s := subject.Start(t, "numbered")
	var base uint64
	s.Scan(s.Hear(), &base)
	got := &collect{t: t, pages: map[uint64]bool{}}
	c := New(context.Background(), got.put, Options{Workers: 3})
	c.Add(s.PID, proc.Range{Start: base, End: base + pages*proc.PageSize}, false)
	bytes, err := c.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if dropped := c.Dropped(); len(dropped) != 1 || dropped[0].Start != base+100*proc.PageSize {
		t.Errorf("dropped %v, want the hole", dropped)
	}
	if bytes != (pages-1)*proc.PageSize || len(got.pages) != pages-1 || got.pages[base+100*proc.PageSize] {
		t.Errorf("%d bytes, %d pages", bytes, len(got.pages))
	}
}

func TestAFrozenHoleIsAnError(t *testing.T) {
	s := subject.Start(t, "numbered")
	var base uint64
	s.Scan(s.Hear(), &base)
	c := New(context.Background(), (&collect{t: t, pages: map[uint64]bool{}}).put, Options{Frozen: true})
	c.Add(s.PID, proc.Range{Start: base, End: base + 200*proc.PageSize}, false)
	if _, err := c.Wait(); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("got %v", err)
	}
}

func TestAFailingSinkEndsTheCopy(t *testing.T) {
	s := subject.Start(t, "numbered")
	var base uint64
	s.Scan(s.Hear(), &base)
	full := errors.New("disk full")
	c := New(context.Background(), func(image.PageBlock) error { return full }, Options{})
	for range 1000 { // far more than the queue holds: Add must not wait for ever
		c.Add(s.PID, proc.Range{Start: base, End: base + 64*proc.PageSize}, false)
	}
	if _, err := c.Wait(); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

func TestIsolatedPagesArePackedTogether(t *testing.T) {
	s := subject.Start(t, "numbered")
	var base uint64
	s.Scan(s.Hear(), &base)
	blocks := 0
	var mu sync.Mutex
	c := New(context.Background(), func(b image.PageBlock) error {
		mu.Lock()
		defer mu.Unlock()
		blocks++
		return nil
	}, Options{})
	for page := uint64(0); page < 90; page += 2 {
		c.Add(s.PID, proc.Range{Start: base + page*proc.PageSize, End: base + (page+1)*proc.PageSize}, false)
	}
	if _, err := c.Wait(); err != nil || blocks != 1 {
		t.Errorf("%d blocks, %v", blocks, err)
	}
}

func TestBufferKeepsCopiesUpToItsLimit(t *testing.T) {
	var through, drained [][]byte
	var mu sync.Mutex
	sink := func(into *[][]byte) RoundSink {
		return func(_ int, b image.PageBlock) error {
			mu.Lock()
			defer mu.Unlock()
			*into = append(*into, bytes.Clone(b.Data))
			return nil
		}
	}
	b := NewBuffer(2*proc.PageSize, sink(&through))
	defer b.Free()
	b.Prepare(proc.PageSize)
	data := make([]byte, proc.PageSize)
	for i := range 3 {
		data[0] = byte(i + 1)
		if err := b.Put(0, image.PageBlock{Extents: []image.Extent{{Addr: uint64(i) * proc.PageSize, Pages: 1}}, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	if len(through) != 1 || through[0][0] != 3 || b.Overflow() != proc.PageSize {
		t.Errorf("%d blocks went through, overflow %d", len(through), b.Overflow())
	}
	b.sink = sink(&drained)
	err := b.Drain(1)
	slices.SortFunc(drained, bytes.Compare)
	if err != nil || len(drained) != 2 || drained[0][0] != 1 || drained[1][0] != 2 {
		t.Errorf("drained %d blocks, %v", len(drained), err)
	}
}

// TestBufferHandsOnTheNewest: of a page that several rounds have kept, the last one.
func TestBufferHandsOnTheNewest(t *testing.T) {
	type put struct {
		round, pid int
		addr       uint64
		pages      string // a letter for the content of each
	}
	random := rand.New(rand.NewPCG(1, 2))
	for trial := range 200 {
		var puts []put
		for round := range 1 + random.IntN(4) {
			for pid := range 2 {
				for at := uint64(0); at < 20; {
					at += random.Uint64N(4)
					n := 1 + random.IntN(5)
					puts = append(puts, put{round, pid, at, strings.Repeat(string(rune('a'+random.IntN(26))), n)})
					at += uint64(n)
				}
			}
		}
		want := map[pageOf]string{}
		got := map[pageOf]string{}
		var mu sync.Mutex
		b := NewBuffer(4<<20, func(round int, block image.PageBlock) error {
			mu.Lock()
			defer mu.Unlock()
			k := keptBlock{round, block}
			k.pages(func(p pageOf, content []byte) {
				if before, twice := got[p]; twice {
					t.Errorf("page %v is handed on twice, as %s and %s", p, before, content[:2])
				}
				got[p] = fmt.Sprint(round, string(content[0]))
			})
			return nil
		})
		for _, p := range puts {
			var data []byte
			for i := range p.pages {
				data = append(data, bytes.Repeat([]byte{p.pages[i]}, proc.PageSize)...)
				want[pageOf{p.pid, (p.addr + uint64(i)) * proc.PageSize}] = fmt.Sprint(p.round, string(p.pages[i]))
			}
			extent := image.Extent{Addr: p.addr * proc.PageSize, Pages: uint32(len(p.pages))}
			if err := b.Put(p.round, image.PageBlock{PID: p.pid, Extents: []image.Extent{extent}, Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Drain(0); err != nil || !maps.Equal(got, want) {
			t.Fatalf("trial %d: %v, handed on %v, should be %v", trial, err, got, want)
		}
	}
}

func anonymous(start, shared uint64, flags string) proc.Mapping {
	return proc.Mapping{
		Range: proc.Range{Start: start, End: start + 100<<20}, Perms: "rw-p", Dev: "00:00",
		Flags: flags, AnonBytes: 100 << 20, SharedAnon: shared,
	}
}

func TestSelectLeavesToCRIUWhatIsSharedSinceFork(t *testing.T) {
	parent := Process{PID: 1, Mappings: []proc.Mapping{
		anonymous(1<<32, 90<<20, ""), anonymous(2<<32, 4<<10, ""), anonymous(3<<32, 0, ""), anonymous(4<<32, 0, "lo"),
	}}
	child := Process{PID: 2, Mappings: parent.Mappings[:2]}
	chosen := Select([]Process{parent, child})
	for pid, want := range map[int][]uint64{1: {2 << 32, 3 << 32}, 2: {2 << 32}} {
		var got []uint64
		for _, m := range chosen[pid] {
			got = append(got, m.Start)
		}
		if len(got) != len(want) || got[0] != want[0] || got[len(got)-1] != want[len(want)-1] {
			t.Errorf("process %d: chosen %#x, want %#x", pid, got, want)
		}
	}
	// The same mapping, shared with a process outside of the tree only.
	if chosen := Select([]Process{parent}); len(chosen[1]) != 3 {
		t.Errorf("alone: %d mappings chosen, want 3", len(chosen[1]))
	}
}

func TestEligible(t *testing.T) {
	file := proc.Mapping{Perms: "rw-p", Dev: "08:01", Inode: 5, Path: "/x"}
	shared := proc.Mapping{Perms: "rw-s", Dev: "00:00"}
	stack := proc.Mapping{Perms: "rw-p", Dev: "00:00", Path: "[stack]"}
	for name, m := range map[string]proc.Mapping{"file": file, "shared": shared, "stack": stack, "locked": anonymous(0, 0, "rd wr lo")} {
		if Eligible(m) {
			t.Errorf("%s memory is eligible", name)
		}
	}
	heap := anonymous(0, 0, "rd wr mr mw me ac sd")
	heap.Path = "[heap]"
	if !Eligible(heap) {
		t.Error("the heap is not eligible")
	}
}

// TestAProcessThatHasEnded: its pages are left out, by whichever way they are
// read, as long as the tree runs.
func TestAProcessThatHasEnded(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo // it stays a zombie, which has a pid and no memory
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	look := func(state string) {
		for _, shared := range []bool{false, true} {
			var r reader
			b := batch{pid: cmd.Process.Pid, shared: shared, bytes: proc.PageSize, extents: []image.Extent{{Addr: 1 << 30, Pages: 1}}}
			got, _, err := r.read(b, make([]byte, proc.PageSize), false)
			r.close()
			if err != nil || len(got) != 0 {
				t.Errorf("%s, shared %t: got %v, %v", state, shared, got, err)
			}
		}
	}
	look("a zombie")
	_ = cmd.Wait()
	look("gone")
}
