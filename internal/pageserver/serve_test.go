package pageserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"stasis/internal/criu"
	"stasis/internal/image"
	"stasis/internal/image/reader"
	"stasis/internal/store/storetest"
)

// asking starts a server of pages and connects a client.
func asking(t *testing.T, c *reader.Checkpoint, l layout) (client *sender, end func() (*Served, error)) {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close() })
	var got *Served
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err = Serve(t.Context(), Single(there), ServeOptions{Checkpoint: c})
	}()
	return &sender{here, l}, func() (*Served, error) {
		t.Helper()
		select {
		case <-done:
		case <-time.After(soon):
			t.Fatal("the server does not end")
		}
		return got, err
	}
}

// get asks for pages and returns what comes.
func (s *sender) get(t *testing.T, pid, addr, pages uint64) []byte {
	t.Helper()
	s.say(t, cmdGet, 0, pages, addr, pid)
	h := decodeHead(s.layout, s.hear(t, int(s.layout)))
	if h.cmd != cmdRun || h.flags != flagPresent || h.addr != addr || h.id != pid || h.pages == 0 || h.pages > pages {
		t.Fatalf("asked for %d pages at %#x of process %d, it answers %+v", pages, addr, pid, h)
	}
	return s.hear(t, int(h.pages)*page)
}

// stored makes a checkpoint of random memory of processes 5 and 6, and returns the memory of 5.
func stored(t *testing.T) (*reader.Checkpoint, map[uint64][]byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	g := receiving(t, rigOptions{})
	s := g.connect(longLayout)
	runs := randomRuns(r, nil, 1<<30)
	for _, id := range []uint64{6<<8 | 1, 5<<8 | 1} {
		s.open(t, id)
		s.sendRuns(t, id, runs)
		if id>>8 == 6 {
			runs = randomRuns(r, nil, 1<<30)
		}
	}
	if status := s.close(t); status != 0 {
		t.Fatalf("the server says %d", status)
	}
	return g.opened(), sent(runs, nil)
}

func TestPagesAreGiven(t *testing.T) {
	c, want := stored(t)
	for _, l := range []layout{shortLayout, longLayout} {
		s, end := asking(t, c, l)
		r := rand.New(rand.NewPCG(5, 6))
		total := int64(0)
		for addr := range want { // in no order
			n := uint64(1 + r.IntN(2000))
			got := s.get(t, 5, addr, n)
			row := uint64(0)
			for row < min(n, maxAnswer) && want[addr+row*page] != nil {
				row++
			}
			if uint64(len(got)) != row*page {
				t.Fatalf("asked for %d pages at %#x, where %d are in a row, it gives %d", n, addr, row, len(got)/page)
			}
			for i := range row {
				if !bytes.Equal(got[i*page:(i+1)*page], want[addr+i*page]) {
					t.Fatalf("the page at %#x is wrong", addr+i*page)
				}
			}
			total += int64(row)
		}
		if status := s.close(t); status != 0 {
			t.Errorf("at the end it says %d", status)
		}
		served, err := end()
		if err != nil || served.Requests != int64(len(want)) || served.Pages != total {
			t.Errorf("it tells of %+v, %v", served, err)
		}
	}
}

// What CRIU kept of a process is in its own images, and goes before what is in blocks.
func TestPagesThatCRIUKeptAreGiven(t *testing.T) {
	memory := storetest.NewMemory()
	w := newWriter(t, memory, "lz4", nil)
	filled := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n*page) }
	err := w.PutPages(0, image.PageBlock{PID: 5, Extents: []image.Extent{{Addr: 1 << 20, Pages: 6}}, Data: filled(1, 6)})
	if err != nil {
		t.Fatal(err)
	}
	text, err := criu.EncodePagemap(3, []criu.PageRun{
		{Start: 1<<20 - page, Pages: 2, Flags: criu.PagePresent}, {Start: 1<<20 + page, Pages: 1, Flags: criu.PageLazy},
		{Start: 1<<20 + 3*page, Pages: 1, Flags: criu.PagePresent | criu.PageLazy},
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{criu.PagemapImage(5): text, criu.PagesImage(3): append(filled(2, 2), filled(3, 1)...)} {
		if err := w.PutFile(name, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(map[int][]image.Range{5: {{Start: 1 << 20, End: 1<<20 + 6*page}}}, &image.Manifest{Kind: image.KindFull}); err != nil {
		t.Fatal(err)
	}
	c, err := reader.Open(memory)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, end := asking(t, c, longLayout)
	want := bytes.Join([][]byte{filled(2, 2), filled(1, 2), filled(3, 1), filled(1, 2)}, nil)
	if got := s.get(t, 5, 1<<20-page, 100); !bytes.Equal(got, want) {
		t.Errorf("it gives %d pages, or wrong ones", len(got)/page)
	}
	s.close(t)
	if _, err := end(); err != nil {
		t.Error(err)
	}
}

func TestImpossibleRequestsAreRefused(t *testing.T) {
	c, want := stored(t)
	good := uint64(1 << 62)
	for addr := range want {
		good = min(good, addr)
	}
	for name, h := range map[string]head{
		"no such process":  {cmdGet, 0, 1, good, 77},
		"process 0":        {cmdGet, 0, 1, good, 0},
		"no such page":     {cmdGet, 0, 1, 1 << 40, 5},
		"between pages":    {cmdGet, 0, 1, good + 1, 5},
		"beyond all":       {cmdGet, 0, 1 << 50, 1 << 63, 5},
		"no pages":         {cmdGet, 0, 0, good, 5},
		"it sends instead": {cmdOpenAnswer, 0, 0, 0, 5<<8 | 1},
	} {
		t.Run(name, func(t *testing.T) {
			s, end := asking(t, c, longLayout)
			s.get(t, 5, good, 1)
			s.say(t, h.cmd, h.flags, h.pages, h.addr, h.id)
			if n, err := s.Read(make([]byte, 1)); err == nil {
				t.Errorf("it answers %d bytes", n)
			}
			if _, err := end(); err == nil {
				t.Error("it says that all was well")
			}
		})
	}
	t.Run("a sender", func(t *testing.T) {
		s, end := asking(t, c, longLayout)
		s.say(t, cmdOpenAnswer, 0, 0, 0, 5<<8|1)
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("it answers, %v", err)
		}
		if _, err := end(); err == nil || !strings.Contains(err.Error(), "of no use") {
			t.Errorf("it says: %v", err)
		}
	})
}

// A damaged checkpoint gives no wrong page.
func TestNoDamagedPageIsGiven(t *testing.T) {
	g := receiving(t, rigOptions{codec: "none"})
	s := g.connect(longLayout)
	s.open(t, 5<<8|1)
	s.pages(t, 5<<8|1, 1<<20, bytes.Repeat([]byte{9}, 3*page))
	s.close(t)
	c := g.opened()
	for name, text := range g.memory.Files {
		if at := bytes.Index(text, bytes.Repeat([]byte{9}, page)); at >= 0 {
			g.memory.Files[name][at+17] = 8
		}
	}
	client, end := asking(t, c, longLayout)
	client.say(t, cmdGet, 0, 1, 1<<20, 5)
	if n, err := client.Read(make([]byte, 1)); err == nil {
		t.Errorf("it answers %d bytes", n)
	}
	var damage *image.DamageError
	if _, err := end(); !errors.As(err, &damage) {
		t.Errorf("it says: %v", err)
	}
}

func TestServingIsInterrupted(t *testing.T) {
	c, _ := stored(t)
	here, there := net.Pipe()
	defer here.Close()
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Serve(ctx, Single(there), ServeOptions{Checkpoint: c})
		done <- err
	}()
	cancel(why)
	select {
	case err := <-done:
		if !errors.Is(err, why) {
			t.Errorf("it says: %v", err)
		}
	case <-time.After(soon):
		t.Fatal("the server does not end")
	}
}
