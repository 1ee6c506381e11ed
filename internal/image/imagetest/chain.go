package imagetest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"stasis/internal/image"
	"stasis/internal/image/families"
	"stasis/internal/image/reader"
	"stasis/internal/image/writer"
	"stasis/internal/store"
	"stasis/internal/store/storetest"
)

// Content is what processes have in their pages; nil is a zero page. Contents are never changed once they are in it.
type Memory map[int]map[uint64][]byte

// Set gives a page its content; nil: zeros.
func (m Memory) Set(pid int, page uint64, content []byte) {
	if m[pid] == nil {
		m[pid] = map[uint64][]byte{}
	}
	m[pid][page] = content
}

// Clone is a copy that shares the content of pages.
func (m Memory) Clone() Memory {
	out := Memory{}
	for pid, pages := range m {
		out[pid] = map[uint64][]byte{}
		for page, content := range pages {
			out[pid][page] = content
		}
	}
	return out
}

// Present is what Finish is told: all pages.
func (m Memory) Present() map[int][]image.Range {
	out := map[int][]image.Range{}
	for pid, pages := range m {
		out[pid] = nil
		for page := range pages {
			out[pid] = append(out[pid], PagesOf(page*image.PageSize, 1))
		}
	}
	return out
}

// PIDs lists the processes, ascending.
func (m Memory) PIDs() []int {
	var out []int
	for pid := range m {
		out = append(out, pid)
	}
	slices.Sort(out)
	return out
}

// Link is a checkpoint of a chain and what must be in it.
type Link struct {
	*storetest.Memory
	ID      [16]byte
	Content Memory
	Kind    string
}

// Chain is checkpoints, each the parent of the next.
type Chain []Link

// Resolve is the reader.Resolver of the chain.
func (c Chain) Resolve(id [16]byte) (store.Source, error) {
	for _, l := range c {
		if l.ID == id {
			return l.Memory, nil
		}
	}
	return nil, fmt.Errorf("there is no checkpoint %x", id)
}

// Open opens the i-th checkpoint until the end of the test.
func (c Chain) Open(tb testing.TB, i int) *reader.Checkpoint {
	tb.Helper()
	p, err := reader.OpenChain(c[i].Memory, c.Resolve)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = p.Close() })
	return p
}

// Add begins the next checkpoint of the chain, lets fill write it, and finishes it.
func (c *Chain) Add(tb testing.TB, o writer.Options, kind string, want Memory, present map[int][]image.Range, fill func(w *writer.Writer)) {
	tb.Helper()
	m := storetest.NewMemory()
	o.ID = [16]byte{byte(len(*c) + 1), byte(len(*c) >> 8), 0xc4}
	o.Shards = max(o.Shards, 1)
	if n := len(*c); n > 0 {
		o.Parent, o.ParentPath = c.Open(tb, n-1), fmt.Sprintf("../c%d", n-1)
	}
	w, err := writer.New(m, o)
	if err != nil {
		tb.Fatal(err)
	}
	fill(w)
	manifest := Manifest()
	manifest.Kind = kind
	if err := w.Finish(present, manifest); err != nil {
		tb.Fatal(err)
	}
	*c = append(*c, Link{m, o.ID, want, kind})
}

// blocks is what Checkpoint and Families have in common.
type blocks interface {
	Blocks() int
	Block(i int) image.BlockInfo
	ReadBlock(i int, b *reader.Buffer) ([]byte, error)
	Find(pid int, addr uint64) (block int, page uint32, kind image.Kind)
	PIDs() []int
	ZeroRanges(pid int) []image.Range
}

// CheckMemory reads every block and every family of a checkpoint and sees that it has that memory, each page once.
func CheckMemory(tb testing.TB, c *reader.Checkpoint, want Memory) {
	tb.Helper()
	checkPages(tb, c, want)
	checkPages(tb, families.Of(c), want)
}

func checkPages(tb testing.TB, c blocks, want Memory) {
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
	var b reader.Buffer
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
				page, at := p.Addr/image.PageSize+n, (uint64(p.First)+n)*image.PageSize
				once(p.PID, page)
				if !bytes.Equal(data[at:at+image.PageSize], want[p.PID][page]) {
					tb.Fatalf("page %d of %d differs", page, p.PID)
				}
				if block, first, kind := c.Find(p.PID, page*image.PageSize); kind != image.Data || block != i || uint64(first)*image.PageSize != at {
					tb.Fatalf("page %d of %d is not found", page, p.PID)
				}
			}
		}
	}
	for _, pid := range c.PIDs() {
		for _, z := range c.ZeroRanges(pid) {
			for page := z.Start / image.PageSize; page < z.End/image.PageSize; page++ {
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
	if !slices.Equal(c.PIDs(), want.PIDs()) {
		tb.Fatalf("there are processes %v instead of %v", c.PIDs(), want.PIDs())
	}
}

// Counters makes a chain of depth checkpoints, of a process of so many pages that changes eight bytes in every page before each.
func Counters(t *testing.T, pages, depth int, o writer.Options) Chain {
	t.Helper()
	var c Chain
	data := Noise(pages * image.PageSize)
	for i := range depth {
		for p := 0; i > 0 && p < pages; p++ {
			binary.LittleEndian.PutUint64(data[p*image.PageSize+p%500*8:], uint64(i*1000+p))
		}
		now := bytes.Clone(data)
		c.Add(t, o, image.KindFull, WithPages(7, 64, now), map[int][]image.Range{7: {PagesOf(64*image.PageSize, pages)}}, func(w *writer.Writer) {
			for p := 0; p < pages; p += image.MaxPages {
				n := min(image.MaxPages, pages-p)
				Put(t, w, 0, 7, now[p*image.PageSize:(p+n)*image.PageSize], image.Extent{Addr: uint64(64+p) * image.PageSize, Pages: uint32(n)})
			}
			PutFile(t, w, "core-7.img", now[:100])
		})
	}
	return c
}

// CheckOrigins sees that the manifest says of the ancestors what it must.
func CheckOrigins(t *testing.T, c Chain, i int, p *reader.Checkpoint) {
	t.Helper()
	m, used := p.Manifest(), map[int]bool{}
	for _, u := range p.Uses() {
		used[u.Origin] = true
	}
	for n, o := range m.Origins {
		at := slices.IndexFunc(c, func(l Link) bool { return hex.EncodeToString(l.ID[:]) == o.ID })
		if at < 0 || at >= i || !used[n+1] {
			t.Errorf("checkpoint %d lists origin %d, %s, in vain", i, n+1, o.ID)
		}
		if !strings.HasSuffix(o.Path, fmt.Sprintf("/c%d", at)) {
			t.Errorf("the path of %d is %s", at, o.Path)
		}
	}
	parent := ""
	if i > 0 {
		parent = hex.EncodeToString(c[i-1].ID[:])
	}
	if m.Parent != parent || m.Kind != c[i].Kind {
		t.Errorf("checkpoint %d is a %s of parent %q instead of %s of %q", i, m.Kind, m.Parent, c[i].Kind, parent)
	}
}

// CheckUses sees that every piece is in the list of what is needed, and that the list is sorted.
func CheckUses(t *testing.T, p *reader.Checkpoint) {
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

// WithPages is a memory of one process.
func WithPages(pid int, first uint64, data []byte) Memory {
	m := Memory{}
	for i := range len(data) / image.PageSize {
		m.Set(pid, first+uint64(i), data[i*image.PageSize:(i+1)*image.PageSize])
	}
	return m
}
