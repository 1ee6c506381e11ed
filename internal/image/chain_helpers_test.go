package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// memory is what processes have in their pages; nil is a zero page. Contents are never changed once they are in it.
type memory map[int]map[uint64][]byte

func (m memory) set(pid int, page uint64, content []byte) {
	if m[pid] == nil {
		m[pid] = map[uint64][]byte{}
	}
	m[pid][page] = content
}

func (m memory) clone() memory {
	out := memory{}
	for pid, pages := range m {
		out[pid] = map[uint64][]byte{}
		for page, content := range pages {
			out[pid][page] = content
		}
	}
	return out
}

func (m memory) present() map[int][]Range {
	out := map[int][]Range{}
	for pid, pages := range m {
		out[pid] = nil
		for page := range pages {
			out[pid] = append(out[pid], pagesOf(page*PageSize, 1))
		}
	}
	return out
}

func (m memory) pids() []int {
	var out []int
	for pid := range m {
		out = append(out, pid)
	}
	slices.Sort(out)
	return out
}

// link is a checkpoint of a chain and what must be in it.
type link struct {
	*storetest.Memory
	id     [16]byte
	memory memory
	kind   string
}

// chain is checkpoints, each the parent of the next.
type chain []link

func (c chain) resolve(id [16]byte) (store.Source, error) {
	for _, l := range c {
		if l.id == id {
			return l.Memory, nil
		}
	}
	return nil, fmt.Errorf("there is no checkpoint %x", id)
}

func (c chain) open(tb testing.TB, i int) *Checkpoint {
	tb.Helper()
	p, err := OpenChain(c[i].Memory, c.resolve)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = p.Close() })
	return p
}

// add begins the next checkpoint of the chain, lets fill write it, and finishes it.
func (c *chain) add(tb testing.TB, o WriterOptions, kind string, want memory, present map[int][]Range, fill func(w *Writer)) {
	tb.Helper()
	m := storetest.NewMemory()
	o.ID = [16]byte{byte(len(*c) + 1), byte(len(*c) >> 8), 0xc4}
	o.Shards = max(o.Shards, 1)
	if n := len(*c); n > 0 {
		o.Parent, o.ParentPath = c.open(tb, n-1), fmt.Sprintf("../c%d", n-1)
	}
	w, err := NewWriter(m, o)
	if err != nil {
		tb.Fatal(err)
	}
	fill(w)
	manifest := testManifest()
	manifest.Kind = kind
	if err := w.Finish(present, manifest); err != nil {
		tb.Fatal(err)
	}
	*c = append(*c, link{m, o.ID, want, kind})
}

// blocks is what Checkpoint and Families have in common.
type blocks interface {
	Blocks() int
	Block(i int) BlockInfo
	ReadBlock(i int, b *Buffer) ([]byte, error)
	Find(pid int, addr uint64) (block int, page uint32, kind Kind)
	PIDs() []int
	ZeroRanges(pid int) []Range
}

// checkMemory reads every block and every family of a checkpoint and sees that it has that memory, each page once.
func checkMemory(tb testing.TB, c *Checkpoint, want memory) {
	tb.Helper()
	checkPages(tb, c, want)
	checkPages(tb, FamiliesOf(c), want)
}

func checkPages(tb testing.TB, c blocks, want memory) {
	tb.Helper()
	seen := map[int]map[uint64]bool{}
	once := func(pid int, page uint64) {
		if seen[pid] == nil {
			seen[pid] = map[uint64]bool{}
		}
		if _, ok := want[pid][page]; !ok || seen[pid][page] {
			tb.Fatalf("page %d of %d is there twice, or should not be there", page, pid)
		}
		seen[pid][page] = true
	}
	var b Buffer
	for i := range c.Blocks() {
		data, err := c.ReadBlock(i, &b)
		if err != nil {
			tb.Fatal(err)
		}
		info := c.Block(i)
		if info.Raw != len(data) {
			tb.Fatalf("block %d has %d bytes: %+v", i, len(data), info)
		}
		for _, p := range info.Pieces {
			for n := range uint64(p.Pages) {
				page, at := p.Addr/PageSize+n, (uint64(p.First)+n)*PageSize
				once(p.PID, page)
				if !bytes.Equal(data[at:at+PageSize], want[p.PID][page]) {
					tb.Fatalf("page %d of %d differs", page, p.PID)
				}
				if block, first, kind := c.Find(p.PID, page*PageSize); kind != Data || block != i || uint64(first)*PageSize != at {
					tb.Fatalf("page %d of %d is not found", page, p.PID)
				}
			}
		}
	}
	for _, pid := range c.PIDs() {
		for _, z := range c.ZeroRanges(pid) {
			for page := z.Start / PageSize; page < z.End/PageSize; page++ {
				once(pid, page)
				if want[pid][page] != nil {
					tb.Fatalf("page %d of %d is zero", page, pid)
				}
			}
		}
	}
	for pid, pages := range want {
		if len(seen[pid]) != len(pages) {
			tb.Fatalf("process %d has %d pages instead of %d", pid, len(seen[pid]), len(pages))
		}
	}
	if !slices.Equal(c.PIDs(), want.pids()) {
		tb.Fatalf("there are processes %v instead of %v", c.PIDs(), want.pids())
	}
}

// counters makes a chain of depth checkpoints, of a process of so many pages that changes eight bytes in every page before each.
func counters(t *testing.T, pages, depth int, o WriterOptions) chain {
	t.Helper()
	var c chain
	data := noise(pages * PageSize)
	for i := range depth {
		for p := 0; i > 0 && p < pages; p++ {
			binary.LittleEndian.PutUint64(data[p*PageSize+p%500*8:], uint64(i*1000+p))
		}
		now := bytes.Clone(data)
		c.add(t, o, KindFull, withPages(7, 64, now), map[int][]Range{7: {pagesOf(64*PageSize, pages)}}, func(w *Writer) {
			for p := 0; p < pages; p += MaxPages {
				n := min(MaxPages, pages-p)
				put(t, w, 0, 7, now[p*PageSize:(p+n)*PageSize], Extent{uint64(64+p) * PageSize, uint32(n)})
			}
			putFile(t, w, "core-7.img", now[:100])
		})
	}
	return c
}

// checkOrigins sees that the manifest says of the ancestors what it must.
func checkOrigins(t *testing.T, c chain, i int, p *Checkpoint) {
	t.Helper()
	m, used := p.Manifest(), map[int]bool{}
	for _, u := range p.Uses() {
		used[u.Origin] = true
	}
	for n, o := range m.Origins {
		at := slices.IndexFunc(c, func(l link) bool { return hex.EncodeToString(l.id[:]) == o.ID })
		if at < 0 || at >= i || !used[n+1] {
			t.Errorf("checkpoint %d lists origin %d, %s, in vain", i, n+1, o.ID)
		}
		if !strings.HasSuffix(o.Path, fmt.Sprintf("/c%d", at)) {
			t.Errorf("the path of %d is %s", at, o.Path)
		}
	}
	parent := ""
	if i > 0 {
		parent = hex.EncodeToString(c[i-1].id[:])
	}
	if m.Parent != parent || m.Kind != c[i].kind {
		t.Errorf("checkpoint %d is a %s of parent %q instead of %s of %q", i, m.Kind, m.Parent, c[i].kind, parent)
	}
}

// checkUses sees that every piece is in the list of what is needed, and that the list is sorted.
func checkUses(t *testing.T, p *Checkpoint) {
	t.Helper()
	type place struct {
		origin, shard int
		off           int64
	}
	pages, last := map[place]uint64{}, place{}
	for i, u := range p.Uses() {
		at := place{u.Origin, u.Shard, u.Offset}
		if i > 0 && slices.Compare([]int{last.origin, last.shard, int(last.off)}, []int{at.origin, at.shard, int(at.off)}) >= 0 {
			t.Errorf("%v comes after %v", at, last)
		}
		last, pages[at] = at, u.Pages
	}
	for i := range p.Blocks() {
		b := p.Block(i)
		for _, x := range b.Pieces {
			for n := range x.Pages {
				if pages[place{b.Origin, b.Shard, b.Offset}]>>(x.First+n)&1 == 0 {
					t.Errorf("page %d of %+v is not in the list", x.First+n, b)
				}
			}
		}
	}
}

// withPages is a memory of one process.
func withPages(pid int, first uint64, data []byte) memory {
	m := memory{}
	for i := range len(data) / PageSize {
		m.set(pid, first+uint64(i), data[i*PageSize:(i+1)*PageSize])
	}
	return m
}
