package pageserver

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"stasis/internal/codec"
	"stasis/internal/image"
	"stasis/internal/image/reader"
)

// run is a run of pages that a sender sends: its content, or a hole where that is nil.
type run struct {
	addr  uint64
	pages uint64
	data  []byte
}

// randomRuns makes runs in order of addresses. Of pages that the parent has, some are left to it.
func randomRuns(r *rand.Rand, parent map[uint64][]byte, from uint64) []run {
	var runs []run
	addr := from
	for range 5 + r.IntN(30) {
		addr += uint64(r.IntN(3)) * page
		n := uint64(1 + r.IntN(8))
		if r.IntN(6) == 0 {
			n = uint64(60 + r.IntN(200)) // more than a block
		}
		inParent := uint64(0)
		for inParent < n && parent[addr+inParent*page] != nil {
			inParent++
		}
		if inParent > 0 && r.IntN(2) == 0 {
			runs = append(runs, run{addr, inParent, nil})
			addr += inParent * page
			continue
		}
		data := make([]byte, n*page)
		for i := range n {
			switch p := data[i*page : (i+1)*page]; r.IntN(4) {
			case 0: // a zero page
			case 1: // as in the parent
				copy(p, parent[addr+i*page])
			default:
				for j := 0; j < len(p); j += 1 + r.IntN(64) {
					p[j] = byte(r.Uint32())
				}
			}
		}
		runs = append(runs, run{addr, n, data})
		addr += n * page
	}
	return runs
}

// sent is what a checkpoint must have after those runs.
func sent(runs []run, parent map[uint64][]byte) map[uint64][]byte {
	all := map[uint64][]byte{}
	for _, r := range runs {
		for i := range r.pages {
			if a := r.addr + i*page; r.data == nil {
				all[a] = parent[a]
			} else {
				all[a] = r.data[i*page : (i+1)*page]
			}
		}
	}
	return all
}

func (s *sender) sendRuns(tb testing.TB, id uint64, runs []run) {
	tb.Helper()
	for _, r := range runs {
		if r.data == nil {
			s.hole(tb, id, r.addr, r.pages)
		} else {
			s.pages(tb, id, r.addr, r.data)
		}
	}
}

func TestWhatIsSentIsStored(t *testing.T) {
	for _, l := range []layout{shortLayout, longLayout} {
		for _, codecName := range codec.Names() {
			t.Run(fmt.Sprintf("%d bytes %s", l, codecName), func(t *testing.T) { chainOfSessions(t, l, codecName) })
		}
	}
}

// chainOfSessions sends random memory three times, the second and third with what did not change as holes.
func chainOfSessions(t *testing.T, l layout, codecName string) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(l), uint64(len(codecName))))
	names := []uint64{101<<8 | 1, 7<<8 | 1, 5<<8 | 2, (1<<40+3)<<8 | 2, 1<<31<<8 - 256 + 1}
	memory := make([]map[uint64][]byte, len(names))
	var parent *reader.Checkpoint
	for round := range 3 {
		g := receiving(t, rigOptions{codec: codecName, parent: parent})
		s := g.connect(l)
		s.say(t, cmdParent, 0, 0, 0, names[0])
		if got := s.hear(t, 4); got[0] != byte(min(round, 1)) || got[1]|got[2]|got[3] != 0 {
			t.Errorf("round %d: asked whether there is a parent, it says %v", round, got)
		}
		holes, pages := int64(0), int64(0)
		for i, id := range names {
			runs := randomRuns(r, memory[i], []uint64{0x400000, 0x7ffff0000000, 0, page, 1 << 20}[i])
			if has := s.open(t, id); has != (round > 0) {
				t.Errorf("round %d: the parent has pagemap %#x: %v", round, id, has)
			}
			s.sendRuns(t, id, runs)
			memory[i] = sent(runs, memory[i])
			for _, run := range runs {
				if run.data == nil {
					holes += int64(run.pages)
				} else {
					pages += int64(run.pages)
				}
			}
		}
		if status := s.close(t); status != 0 {
			t.Fatalf("the server says %d", status)
		}
		c := g.opened()
		if g.got.Holes != holes || g.got.Pages != pages || g.got.Segments != 2 || g.got.Unheard != nil {
			t.Errorf("it tells of %+v; sent were %d pages and %d holes", g.got, pages, holes)
		}
		if round > 0 && holes == 0 {
			t.Error("no hole was sent")
		}
		checkManifest(t, c, round)
		for i, id := range names {
			var got map[uint64][]byte
			if id&0xff == 1 {
				got = memoryOf(t, c, int(id>>8))
			} else {
				got = segment(t, c, id>>8)
			}
			sameMemory(t, fmt.Sprintf("round %d, pagemap %#x", round, id), got, memory[i])
		}
		parent = c
	}
}

func checkManifest(t *testing.T, c *reader.Checkpoint, depth int) {
	t.Helper()
	m := c.Manifest()
	if m.Kind != image.KindPreDump || m.Name != "name" || m.Stasis != "test" || m.Depth != depth || m.RootPID != 101 {
		t.Errorf("the manifest is %+v", m)
	}
	if pids := c.PIDs(); !slices.Equal(pids, []int{7, 101, 1<<31 - 1}) || len(m.Processes) != 3 || m.Processes[0].PID != 7 {
		t.Errorf("its processes are %v and %v", pids, m.Processes)
	}
	if (depth > 0) != (m.Parent != "") {
		t.Errorf("its parent is %q", m.Parent)
	}
}

// Pages that are in the parent by the sender's word, or because they are equal, take no space.
func TestWhatIsInTheParentTakesNoSpace(t *testing.T) {
	data := make([]byte, 400*page)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	send := func(parent *reader.Checkpoint, silent bool, how func(s *sender)) *reader.Checkpoint {
		g := receiving(t, rigOptions{codec: "none", parent: parent, silent: silent})
		s := g.connect(longLayout)
		how(s)
		if status := s.close(t); status != 0 {
			t.Fatalf("the server says %d", status)
		}
		return g.opened()
	}
	whole := func(s *sender) {
		for _, id := range []uint64{9<<8 | 1, 9<<8 | 2} {
			if s.open(t, id) {
				t.Error("it tells of its parent")
			}
			s.pages(t, id, 1<<20, data)
		}
	}
	first := send(nil, false, whole)
	if stored := first.Manifest().Figures.BytesStored; stored < 2*int64(len(data)) {
		t.Fatalf("the first has %d bytes", stored)
	}
	for name, how := range map[string]func(s *sender){
		"equal": whole,
		"holes": func(s *sender) {
			for _, id := range []uint64{9<<8 | 1, 9<<8 | 2} {
				s.open(t, id)
				s.hole(t, id, 1<<20, 100)
				s.hole(t, id, 1<<20+100*page, 300)
			}
		},
	} {
		c := send(first, name == "equal", how)
		stored := c.Manifest().Figures.BytesStored
		if stored > page {
			t.Errorf("%s: the second has %d bytes", name, stored)
		}
		for _, got := range []map[uint64][]byte{memoryOf(t, c, 9), segment(t, c, 9)} {
			for i := range 400 {
				if !bytes.Equal(got[1<<20+uint64(i)*page], data[i*page:(i+1)*page]) {
					t.Fatalf("%s: page %d is wrong", name, i)
				}
			}
		}
	}
}

// What breaks the rules ends the session, says why, and leaves no checkpoint.
func TestNonsenseIsRefused(t *testing.T) {
	const p = 5<<8 | 1
	const m = 5<<8 | 2
	one := make([]byte, page)
	long := func(cmd, flags uint16, pages, addr, id uint64) []byte {
		return head{cmd, flags, pages, addr, id}.encode(longLayout)
	}
	open := func(id uint64) []byte { return long(cmdOpen, 0, 0, 0, id) }
	closing := long(cmdClose, 0, 0, 0, 0)
	var many []byte
	for pid := range uint64(maxProcesses + 1) {
		many = append(many, open((pid+2)<<8|1)...)
	}
	for name, c := range map[string]struct {
		parts [][]byte
		want  string
	}{
		"too many processes":      {[][]byte{many}, "more than 65536 processes"},
		"unknown command":         {[][]byte{open(p), long(99, 0, 0, 0, p)}, "command 99"},
		"get":                     {[][]byte{open(p), long(cmdGet, 0, 1, page, 5)}, "command 7"},
		"pages without open":      {[][]byte{long(cmdParent, 0, 0, 0, p), long(cmdRun, flagPresent, 1, page, p), one, closing}, "not open"},
		"pages of another":        {[][]byte{open(p), long(cmdRun, flagPresent, 1, page, m), one, closing}, "not open"},
		"unknown kind":            {[][]byte{open(p), open(5<<8 | 3)}, "unknown kind, 3"},
		"pid 0":                   {[][]byte{open(p), open(1)}, "no process id"},
		"pid too large":           {[][]byte{open(p), open(1<<31<<8 | 1)}, "no process id"},
		"opened twice":            {[][]byte{open(p), open(m), open(p)}, "sent twice"},
		"descending":              {[][]byte{open(p), long(cmdRun, flagPresent, 1, 2*page, p), one, long(cmdRun, flagPresent, 1, page, p), one}, "behind"},
		"twice":                   {[][]byte{open(m), long(cmdRun, flagPresent, 1, 0, m), one, long(cmdRun, flagPresent, 1, 0, m), one}, "behind"},
		"address between pages":   {[][]byte{open(p), long(cmdRun, flagPresent, 1, 77, p), one}, "no range"},
		"too many pages":          {[][]byte{open(p), long(cmdRun, flagPresent, 1<<52, page, p), one}, "no range"},
		"overflow":                {[][]byte{open(p), long(cmdRun, flagPresent, 1<<60, page, p), one}, "no range"},
		"address too high":        {[][]byte{open(p), long(cmdRun, flagPresent, 1, 1<<63, p), one}, "no range"},
		"unknown flag":            {[][]byte{open(p), long(cmdRun, flagPresent|8, 1, page, p), one}, "unknown flags"},
		"nowhere":                 {[][]byte{open(p), long(cmdRun, 0, 1, page, p)}, "nowhere"},
		"lazy":                    {[][]byte{open(p), long(cmdRun, flagLazy, 1, page, p)}, "--lazy-pages"},
		"hole without parent":     {[][]byte{open(p), long(cmdRun, flagParent, 1, page, p), closing}, "parent"},
		"old hole without parent": {[][]byte{open(m), long(cmdHole, 0, 1, page, m), closing}, "parent"},
		"ends in pages":           {[][]byte{open(p), long(cmdRun, flagPresent, 2, page, p), one}, "middle"},
		"ends in shared pages":    {[][]byte{open(m), long(cmdRun, flagPresent, 2, page, m), one[:77]}, "middle"},
		"ends in a head":          {[][]byte{open(p), closing[:30]}, "middle"},
		"ends without a word":     {[][]byte{open(p), long(cmdRun, flagPresent, 1, page, p), one}, "without saying"},
		"ends at once":            {[][]byte{closing}, "no memory was sent"},
		"asks and ends":           {[][]byte{long(cmdParent, 0, 0, 0, p), closing}, "no memory was sent"},
	} {
		t.Run(name, func(t *testing.T) {
			g := receiving(t, rigOptions{})
			s := g.connect(longLayout)
			go func() { // answers are read, so that nobody waits
				for b := make([]byte, 8); ; {
					if _, err := s.Read(b); err != nil {
						return
					}
				}
			}()
			for _, part := range c.parts {
				if _, err := s.Write(part); err != nil {
					break // it has had enough
				}
			}
			s.Close()
			if err := g.refused(); !strings.Contains(err.Error(), c.want) {
				t.Errorf("it says: %v; it should speak of %q", err, c.want)
			}
		})
	}
}

// A hole must be in the parent, all of it.
func TestHolesMustBeInTheParent(t *testing.T) {
	first := receiving(t, rigOptions{})
	s := first.connect(longLayout)
	data := bytes.Repeat([]byte{7}, 4*page)
	for _, id := range []uint64{3<<8 | 1, 3<<8 | 2} {
		s.open(t, id)
		s.pages(t, id, 4*page, data)
		s.pages(t, id, 10*page, data)
	}
	s.close(t)
	parent := first.opened()
	for name, at := range map[string][2]uint64{
		"before": {3, 1}, "over the beginning": {3, 2}, "over the end": {7, 2}, "between": {8, 2}, "over all": {4, 10}, "behind": {14, 1},
	} {
		for _, id := range []uint64{3<<8 | 1, 3<<8 | 2} {
			t.Run(fmt.Sprintf("%s %d", name, id&3), func(t *testing.T) {
				g := receiving(t, rigOptions{parent: parent})
				s := g.connect(longLayout)
				if !s.open(t, id) {
					t.Error("it says that there is no parent")
				}
				s.hole(t, id, at[0]*page, at[1])
				if err := g.refused(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "lacks") {
					t.Errorf("it says: %v", err)
				}
			})
		}
	}
}

// A parent that the sender was not told of takes no holes.
func TestNoHolesWithoutAnAnnouncement(t *testing.T) {
	first := receiving(t, rigOptions{})
	s := first.connect(longLayout)
	s.open(t, 3<<8|1)
	s.pages(t, 3<<8|1, page, bytes.Repeat([]byte{7}, page))
	s.close(t)
	g := receiving(t, rigOptions{parent: first.opened(), silent: true})
	s = g.connect(longLayout)
	s.say(t, cmdParent, 0, 0, 0, 3<<8|1)
	if s.hear(t, 4)[0] != 0 || s.open(t, 3<<8|1) {
		t.Error("it tells of its parent")
	}
	s.hole(t, 3<<8|1, page, 1)
	if err := g.refused(); !errors.Is(err, ErrProtocol) {
		t.Errorf("it says: %v", err)
	}
}
